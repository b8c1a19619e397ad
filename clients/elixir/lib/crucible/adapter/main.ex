defmodule Crucible.Adapter.Main do
  @moduledoc """
  The adapter as a program.

      crucible-adapter [--listen unix:PATH | 127.0.0.1:PORT] [--work-dir FOLDER]

  Without --listen it is a host's child: it listens where CRUCIBLE_ADAPTER_LISTEN says, and ends when its stdin does.
  Either way the first line on stdout, once it serves, is `{"crucible": 1, "address": "..."}`; logs go to stderr, and
  SIGTERM ends it. Without --work-dir its checkpoints lie in a folder that goes with it: hosts copy what they keep.
  """

  alias Crucible.Files

  @doc "Runs the program; returns when it serves."
  def run(arguments \\ System.argv()) do
    # stdout is the announcement's; the second is how Elixir 1.15 and newer spell it.
    Application.put_env(:logger, :console, device: :standard_error)
    Application.put_env(:logger, :default_handler, config: [type: :standard_error])
    with {:error, problem} <- Crucible.Fault.load(), do: fail(problem)
    options = options(arguments)
    listen = options[:listen] || System.get_env("CRUCIBLE_ADAPTER_LISTEN", "")
    address = address(listen)
    work_dir = options[:work_dir] || temporary_folder()
    socket = with {:unix, path} <- address, do: [path], else: (_ -> [])
    # What a killed process left.
    Enum.each(socket, &File.rm/1)

    Application.put_env(:crucible_adapter, :serve, listen: address, work_dir: work_dir)
    temporary = if options[:work_dir], do: [], else: [work_dir]
    Application.put_env(:crucible_adapter, :remove_at_end, socket ++ temporary)

    with {:error, reason} <- Application.ensure_all_started(:crucible_adapter, :permanent),
         do: fail("cannot listen on #{listen} or use #{work_dir}: #{inspect(reason)}")

    Enum.each(socket, &File.chmod(&1, 0o600))
    IO.puts(Files.json(%{"crucible" => 1, "address" => Crucible.Grpc.Cowboy.bound(address)}))
    if options[:listen] == nil, do: spawn(&watch_stdin/0)
    :ok
  end

  defp options(arguments) do
    case OptionParser.parse(arguments, strict: [listen: :string, work_dir: :string]) do
      {options, [], []} ->
        options

      {_, rest, wrong} ->
        unknown = Enum.map(wrong, &elem(&1, 0)) ++ rest
        fail("#{Enum.join(unknown, " ")}: the options are --listen ADDRESS and --work-dir FOLDER")
    end
  end

  defp address("unix:" <> path) when path != "", do: {:unix, path}

  defp address(text) do
    with [_, host, port] <- Regex.run(~r/\A\[?([0-9a-f.:]+|localhost)\]?:([0-9]+)\z/, text),
         {port, ""} when port <= 65_535 <- Integer.parse(port),
         host = if(host == "localhost", do: "127.0.0.1", else: host),
         {:ok, ip} <- :inet.parse_address(to_charlist(host)),
         true <- ip == {0, 0, 0, 0, 0, 0, 0, 1} or elem(ip, 0) == 127 do
      {:tcp, ip, port}
    else
      _ ->
        fail(
          "cannot listen on #{inspect(text)}: give --listen, or CRUCIBLE_ADAPTER_LISTEN, as unix:PATH or an address of " <>
            "this machine such as 127.0.0.1:50052"
        )
    end
  end

  defp temporary_folder do
    name = "crucible-elixir-#{Base.encode16(:crypto.strong_rand_bytes(8), case: :lower)}"
    folder = Path.join(System.tmp_dir!(), name)
    File.mkdir!(folder)
    File.chmod!(folder, 0o700)
    folder
  end

  defp watch_stdin do
    case IO.binread(:stdio, :line) do
      data when is_binary(data) ->
        watch_stdin()

      _ ->
        Application.stop(:crucible_adapter)
        # init's own way down takes a second.
        System.halt(0)
    end
  end

  @spec fail(String.t()) :: no_return
  defp fail(text) do
    IO.puts(:stderr, "crucible-adapter: #{text}")
    System.halt(2)
  end
end
