defmodule Crucible.Supervisor do
  @moduledoc """
  The adapter as a part of a supervision tree; one to a VM.

      children = [{Crucible.Supervisor, listen: {:tcp, {127, 0, 0, 1}, 50052}, work_dir: "/var/lib/crucible-elixir"}]

  Options, beside the two that are required: `model` (a `Crucible.Model`), `transport` (a `Crucible.Grpc.Transport`),
  `name`, `lease_seconds`, and the limits `max_training_sessions`, `max_sampling_sessions`, `max_operations_in_flight`
  and `max_tokens_in_flight` (of a session).
  """

  use Supervisor

  @defaults %{
    model: Crucible.ToyModel,
    transport: Crucible.Grpc.Cowboy,
    name: "crucible-elixir",
    lease_seconds: 1800,
    max_training_sessions: 64,
    max_sampling_sessions: 256,
    max_operations_in_flight: 64,
    max_tokens_in_flight: 4 * 1024 * 1024
  }

  def start_link(options),
    do: Supervisor.start_link(__MODULE__, config(options), name: __MODULE__)

  defp config(options) do
    config = Map.new(options)
    unknown = Map.keys(config) -- [:listen, :work_dir | Map.keys(@defaults)]
    if unknown != [], do: raise(ArgumentError, "unknown options #{inspect(unknown)}")
    Enum.each([:listen, :work_dir], &Map.fetch!(config, &1))
    Map.merge(@defaults, config)
  end

  @impl true
  def init(config) do
    server = Crucible.Grpc.Server.new(Crucible.Adapter.services(), config)

    children = [
      Crucible.Adapter,
      {Registry, keys: :unique, name: Crucible.SessionRegistry},
      {Task.Supervisor, name: Crucible.Tasks},
      {Crucible.Checkpoints, Path.join(config.work_dir, "checkpoints")},
      {DynamicSupervisor, name: Crucible.SessionSupervisor},
      {Crucible.Sessions, kind: :training, limit: config.max_training_sessions},
      {Crucible.Sessions, kind: :sampling, limit: config.max_sampling_sessions},
      # Last: it answers once everything behind it is there.
      config.transport.child_spec({config.listen, server})
    ]

    # Sessions without the processes they name are of no use: everything starts anew.
    Supervisor.init(children, strategy: :one_for_all, max_restarts: 0)
  end
end
