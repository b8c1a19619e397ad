# Debian's cowboy, unpacked by setup.sh, is taken where it is; otherwise Hex brings one.
debian = Path.wildcard(Path.join(__DIR__, "_deps/lib/*/ebin"))
Enum.each(debian, &Code.append_path/1)

defmodule Crucible.MixProject do
  use Mix.Project

  @from_hex debian == []

  def project do
    [
      app: :crucible_adapter,
      version: "0.1.0",
      elixir: "~> 1.14",
      # The tests run on what setup.sh has built.
      build_per_environment: false,
      start_permanent: false,
      deps: deps()
    ]
  end

  def application do
    [mod: {Crucible.Application, []}, extra_applications: [:logger, :crypto, :cowboy, :jsx]]
  end

  defp deps do
    if @from_hex, do: [{:cowboy, "~> 2.10"}, {:jsx, "~> 3.1"}], else: []
  end
end
