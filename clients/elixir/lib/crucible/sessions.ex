defmodule Crucible.Sessions do
  @moduledoc """
  The open sessions of one kind: created once per request id, by whichever call comes first, and limited in number.

  Whoever asks meanwhile waits with it. A caller that hangs up does not stop the making; the same request id then gets
  the session.
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
  def create(kind, request_id, digest, options),
    do: GenServer.call(name(kind), {:create, request_id, digest, options}, :infinity)

  defp name(kind), do: Module.concat(__MODULE__, Macro.camelize(to_string(kind)))

  @impl true
  def init(options), do: {:ok, %{kind: options[:kind], limit: options[:limit], by_request: %{}}}

  @impl true
  def handle_call({:create, request_id, digest, options}, from, state) do
    state = forget_ended(state)

    case state.by_request do
      %{^request_id => %{digest: ^digest, open: true, id: id}} ->
        {:reply, {:ok, id}, state}

      %{^request_id => %{digest: ^digest}} ->
        {:noreply, update_in(state.by_request[request_id].waiting, &[from | &1])}

      %{^request_id => _} ->
        {:reply, {:error, reused(request_id)}, state}

      open when map_size(open) >= state.limit ->
        {:reply, {:error, too_many(state)}, state}

      _ ->
        {:noreply, start(request_id, digest, options, from, state)}
    end
  end

  @impl true
  def handle_info({:opened, request_id, pid, result}, state) do
    case state.by_request do
      %{^request_id => %{pid: ^pid} = entry} ->
        {:noreply, opened(request_id, entry, result, state)}

      _ ->
        {:noreply, state}
    end
  end

  def handle_info({:DOWN, _, :process, pid, reason}, state) do
    case Enum.find(state.by_request, fn {_, entry} -> entry.pid == pid end) do
      {request_id, entry} ->
        # Nobody waits any more, unless it died while it was being opened.
        if entry.waiting != [] do
          error = Error.hidden("the opening of a #{state.kind} session", :exit, reason, [])
          Enum.each(entry.waiting, &GenServer.reply(&1, {:error, error}))
        end

        {:noreply, %{state | by_request: Map.delete(state.by_request, request_id)}}

      nil ->
        {:noreply, state}
    end
  end

  defp start(request_id, digest, options, from, state) do
    id = {state.kind, Base.encode16(:crypto.strong_rand_bytes(16), case: :lower)}
    table = self()
    tell = fn result -> send(table, {:opened, request_id, self(), result}) end
    child = {Session, [id: id, opened: tell] ++ options}
    {:ok, pid} = DynamicSupervisor.start_child(Crucible.SessionSupervisor, child)
    Process.monitor(pid)
    entry = %{digest: digest, pid: pid, id: id, open: false, waiting: [from]}
    put_in(state.by_request[request_id], entry)
  end

  defp opened(request_id, entry, result, state) do
    answer = with :ok <- result, do: {:ok, entry.id}
    Enum.each(entry.waiting, &GenServer.reply(&1, answer))

    if result == :ok,
      do: put_in(state.by_request[request_id], %{entry | open: true, waiting: []}),
      else: %{state | by_request: Map.delete(state.by_request, request_id)}
  end

  # The end of a session may not have been told here yet.
  defp forget_ended(state) do
    kept =
      for {_, entry} = each <- state.by_request,
          entry.waiting != [] or Process.alive?(entry.pid),
          into: %{},
          do: each

    %{state | by_request: kept}
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
