defmodule Crucible.Sessions do
  @moduledoc """
  The open sessions of one kind: created once per request id, by whichever call comes first, and limited in number.

  A caller that hangs up does not stop the making; the same request id then gets the session.
  """

  use GenServer

  alias Crucible.{Error, Session}

  @doc "Options: `kind`, and `limit`, the most open sessions."
  def start_link(options),
    do: GenServer.start_link(__MODULE__, options, name: name(Keyword.fetch!(options, :kind)))

  def child_spec(options), do: %{super(options) | id: {__MODULE__, options[:kind]}}

  @doc """
  The session of a request id, started with these options when there is none, and open.

  Errors: REQUEST_ID_REUSED for another payload, TOO_MANY_SESSIONS, and what opening it has ended with.
  """
  @spec create(atom, String.t(), binary, keyword) :: {:ok, Session.id()} | {:error, Error.t()}
  def create(kind, request_id, digest, options) do
    with {:ok, pid, id} <-
           GenServer.call(name(kind), {:create, request_id, digest, options}, :infinity),
         :ok <- Session.opened(pid),
         do: {:ok, id}
  end

  defp name(kind), do: Module.concat(__MODULE__, Macro.camelize(to_string(kind)))

  @impl true
  def init(options), do: {:ok, %{kind: options[:kind], limit: options[:limit], by_request: %{}}}

  @impl true
  def handle_call({:create, request_id, digest, options}, _, state) do
    # One that has just ended may not have been told here yet.
    alive =
      for {_, {_, pid, _}} = entry <- state.by_request, Process.alive?(pid), into: %{}, do: entry

    state = %{state | by_request: alive}

    case state.by_request do
      %{^request_id => {^digest, pid, id}} ->
        {:reply, {:ok, pid, id}, state}

      %{^request_id => _} ->
        {:reply, {:error, reused(request_id)}, state}

      open when map_size(open) >= state.limit ->
        {:reply, {:error, too_many(state)}, state}

      _ ->
        id = {state.kind, Base.encode16(:crypto.strong_rand_bytes(16), case: :lower)}
        child = {Session, [{:id, id} | options]}
        {:ok, pid} = DynamicSupervisor.start_child(Crucible.SessionSupervisor, child)
        Process.monitor(pid)
        state = put_in(state.by_request[request_id], {digest, pid, id})
        {:reply, {:ok, pid, id}, state}
    end
  end

  @impl true
  def handle_info({:DOWN, _, :process, pid, _}, state) do
    left = for {_, {_, other, _}} = entry <- state.by_request, other != pid, into: %{}, do: entry
    {:noreply, %{state | by_request: left}}
  end

  defp reused(request_id) do
    Error.new(
      :invalid_argument,
      "REQUEST_ID_REUSED",
      "request_id: #{request_id} was used for another request: use a new UUID",
      metadata: %{field: "request_id", request_id: request_id}
    )
  end

  defp too_many(%{kind: kind, limit: limit}) do
    Error.new(
      :resource_exhausted,
      "TOO_MANY_SESSIONS",
      "#{limit} #{kind} sessions are open, the most this adapter keeps: close one first",
      metadata: %{kind: kind, limit: limit, open: limit},
      retry_delay: 5
    )
  end
end
