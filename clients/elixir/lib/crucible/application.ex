defmodule Crucible.Application do
  @moduledoc """
  Serves when the application's environment says so (`serve`: the options of `Crucible.Supervisor`), as the program does.
  Without it nothing is started, and `Crucible.Supervisor` belongs into a tree of yours.
  """

  use Application

  @impl true
  def start(_, _) do
    children =
      case Application.get_env(:crucible_adapter, :serve) do
        nil -> []
        options -> [{Crucible.Supervisor, options}]
      end

    Supervisor.start_link(children, strategy: :one_for_one, max_restarts: 0)
  end

  @impl true
  def stop(_) do
    for path <- Application.get_env(:crucible_adapter, :remove_at_end, []), do: File.rm_rf(path)
  end
end
