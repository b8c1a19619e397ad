defmodule Crucible.Grpc.Transport do
  @moduledoc """
  What carries gRPC: it moves bytes, `Crucible.Grpc.Server` knows what they mean.

  An implementation listens, finds the method of a call with `Crucible.Grpc.Server.find/2`, and runs
  `Crucible.Grpc.Server.call/5` in a process of the call's own, with

    * the request's messages as an enumerable of binaries, without gRPC's five bytes of framing,
    * a function that sends one response message.

  The outcome it ends the call with: status, message, and trailers. It enforces the call's deadline, and ends the call's
  process when the client cancels. `Crucible.Grpc.Cowboy` is such an implementation; docs/adapters/elixir.md shows how
  elixir-grpc becomes another.
  """

  alias Crucible.Grpc.Server

  @type address :: {:tcp, :inet.ip_address(), :inet.port_number()} | {:unix, Path.t()}

  @doc "Listens on an address and serves `server`; part of a supervision tree."
  @callback child_spec({address, Server.t()}) :: Supervisor.child_spec()

  @doc "The address that callers connect to, with the port that port 0 became. Called once it listens."
  @callback bound(address) :: String.t()
end
