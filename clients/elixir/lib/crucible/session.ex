defmodule Crucible.Session do
  @moduledoc """
  One session: a process that numbers its calls, runs what they enqueue one after the other, and answers those who wait.

      submit(sequence, ...)   new: accepted and queued · repeat: the first operation · early: held until its turn
      a task of its own       QUEUED -> RUNNING -> SUCCEEDED | FAILED, or CANCELLED before it ran
      await(id)               long poll; the result stays for ten minutes or until 64 later ones finished

  What is computed on (`subject`) is handed from one operation to the next: work gets it and gives it back. A task that
  crashes fails its operation, and the subject stays as it was.
  """

  use GenServer, restart: :temporary

  require Logger
  alias Crucible.{Error, Operations}
  alias Crucible.Session.{Early, Work}

  defstruct [
    :id,
    :service,
    :subject,
    :operations,
    :lease_ms,
    :hold_ms,
    :last_used,
    # The operation at work: its id, Work, and the task's pid and ref
    :running,
    # Closed, but for that operation.
    closing: false,
    queue: :queue.new(),
    early: %{},
    # Who waits for an operation, with the timer of the wait, by its id
    waiting: %{}
  ]

  @type id :: {kind :: :training | :sampling, String.t()}
  @type answer :: {:ok, Operations.operation()} | {:error, Error.t()}

  # For services

  @doc """
  Starts a session. Options: `id`; `open`, a function to `{:ok, subject}` or `{:error, error}` that is run in the
  session's process; `opened`, which is told `:ok` or that error; `order` and `limits` as in `Crucible.Operations.new/2`;
  `service`, its full name; `lease_ms`; and `hold_ms`, how long an early call is held (10 s).
  """
  def start_link(options),
    do: GenServer.start_link(__MODULE__, options, name: via(Keyword.fetch!(options, :id)))

  @doc "Accepts a call in its turn, or finds its first operation."
  @spec submit(id, pos_integer, binary, Work.t()) :: answer
  def submit(id, sequence, digest, work), do: call(id, {:submit, sequence, digest, work})

  @doc "The operation, finished if that happens within the time."
  @spec await(id, String.t(), non_neg_integer) :: answer
  def await(id, operation_id, milliseconds), do: call(id, {:await, operation_id, milliseconds})

  @doc "Drops an operation that has not begun; ends one that runs, where it may."
  @spec cancel(id, String.t()) :: answer
  def cancel(id, operation_id), do: call(id, {:cancel, operation_id})

  @doc "What the session computes on as the last finished operation left it, and the number expected next."
  @spec look(id, String.t()) :: {:ok, term, pos_integer} | {:error, Error.t()}
  def look(id, field \\ "session_id"), do: call(id, :look, field)

  @doc "Ends the session: its running operation is stopped where it may be, else waited for. Unknown is OK."
  @spec close(id) :: :ok
  def close(id) do
    for {pid, _} <- Registry.lookup(Crucible.SessionRegistry, id) do
      monitor = Process.monitor(pid)
      GenServer.cast(pid, :close)

      receive do
        {:DOWN, ^monitor, _, _, _} -> :ok
      end
    end

    :ok
  end

  defp call(id, request, field \\ "session_id") do
    GenServer.call(via(id), request, :infinity)
  catch
    # Unknown, or it ended while this call was on its way.
    :exit, _ -> {:error, unknown(field, inspect(elem(id, 1)))}
  end

  defp via(id), do: {:via, Registry, {Crucible.SessionRegistry, id}}

  defp unknown(field, what) do
    Error.new(
      :not_found,
      "SESSION_NOT_FOUND",
      "#{field}: no open session #{what}: create one, from the last checkpoint if there is one",
      metadata: %{field: field}
    )
  end

  # The process

  @impl true
  def init(options) do
    state = %__MODULE__{
      id: options[:id],
      service: options[:service],
      operations: Operations.new(options[:order], options[:limits] || %{}),
      lease_ms: options[:lease_ms],
      hold_ms: options[:hold_ms] || 10_000,
      last_used: now()
    }

    {:ok, state, {:continue, {options[:open], options[:opened]}}}
  end

  @impl true
  def handle_continue({open, opened}, state) do
    case try_open(open) do
      {:ok, subject} ->
        Process.send_after(self(), :lease, state.lease_ms)
        opened.(:ok)
        {:noreply, renew(%{state | subject: subject})}

      {:error, error} ->
        opened.({:error, error})
        {:stop, :normal, state}
    end
  end

  @impl true
  def handle_call(_, _, %{closing: true} = state),
    do: {:reply, {:error, unknown("session_id", "any more")}, state}

  def handle_call(:look, _, state),
    do: {:reply, {:ok, state.subject, state.operations.next}, renew(state)}

  def handle_call({:submit, sequence, digest, work}, from, state) do
    state = renew(state)
    call = {from, sequence, digest, work}

    case Operations.classify(state.operations, sequence, digest, now()) do
      :early -> {:noreply, %{state | early: Early.hold(state.early, call, state.hold_ms)}}
      _ -> {:noreply, take(call, state)}
    end
  end

  def handle_call({:await, id, milliseconds}, from, state) do
    state = renew(state)

    case Operations.get(state.operations, id, now()) do
      {:ok, operation} ->
        if Operations.final?(operation) or milliseconds == 0 do
          {:reply, {:ok, operation}, state}
        else
          timer = Process.send_after(self(), {:waited, id, from}, milliseconds)
          {:noreply, update_in(state.waiting[id], &[{from, timer} | &1 || []])}
        end

      error ->
        {:reply, error, state}
    end
  end

  def handle_call({:cancel, id}, _, state) do
    state = renew(state)

    case Operations.get(state.operations, id, now()) do
      {:ok, operation} ->
        state = if Operations.final?(operation), do: state, else: drop(id, state)
        {:reply, Operations.get(state.operations, id, now()), state}

      error ->
        {:reply, error, state}
    end
  end

  @impl true
  def handle_cast(:close, state) do
    Enum.each(Early.all(state.early), &refuse(&1, unknown("session_id", "any more")))
    queued = for {id, _} when id != :dropped <- :queue.to_list(state.queue), do: id

    state =
      Enum.reduce(
        queued,
        %{state | early: %{}, queue: :queue.new(), closing: true},
        &end_cancelled/2
      )

    state = if state.running, do: drop(state.running.id, state), else: state
    stop_when_idle(state)
  end

  @impl true
  def handle_info({:waited, id, from}, state) do
    case List.keytake(state.waiting[id] || [], from, 0) do
      {_, others} ->
        GenServer.reply(from, Operations.get(state.operations, id, now()))
        {:noreply, renew(put_in(state.waiting[id], others))}

      nil ->
        {:noreply, state}
    end
  end

  def handle_info({:early_too_long, sequence, from}, state) do
    {call, early} = Early.take_from(state.early, sequence, from)
    if call, do: refuse(call, Operations.gap(state.operations, sequence))
    {:noreply, %{state | early: early}}
  end

  def handle_info({ref, outcome}, %{running: %{ref: ref} = running} = state) do
    Process.demonitor(ref, [:flush])

    case outcome do
      {:ok, result, subject} ->
        finish(running.id, :OPERATION_STATE_SUCCEEDED, [result: result], %{
          state
          | running: nil,
            subject: subject
        })

      {:error, error, subject} ->
        fail(running.id, error, %{state | running: nil, subject: subject})
    end
  end

  # The task was killed: by a cancellation, or by somebody else.
  def handle_info({:DOWN, ref, _, _, reason}, %{running: %{ref: ref} = running} = state) do
    state = %{state | running: nil}

    if running.stopped do
      finish(running.id, :OPERATION_STATE_CANCELLED, [], state)
    else
      error = Error.hidden(where(state, running.id), :exit, reason, [])

      fail(running.id, error, %{
        state
        | subject: Work.failed(running.work, state.subject, "it was killed")
      })
    end
  end

  def handle_info({:DOWN, monitor, _, _, _}, state) do
    case Early.hung_up(state.early, monitor) do
      {:ok, early} -> {:noreply, %{state | early: early}}
      :error -> {:noreply, state}
    end
  end

  def handle_info(:lease, state) do
    left = state.last_used + state.lease_ms - now()

    cond do
      left > 0 ->
        Process.send_after(self(), :lease, left)
        {:noreply, state}

      state.operations.unfinished > 0 ->
        Process.send_after(self(), :lease, state.lease_ms)
        {:noreply, state}

      true ->
        Logger.info("the lease of session #{elem(state.id, 1)} ended")
        {:stop, :normal, state}
    end
  end

  def handle_info(_, state), do: {:noreply, state}

  defp try_open(open) do
    open.()
  rescue
    error in Error -> {:error, error}
  end

  # Order

  defp take({from, sequence, digest, work}, state) do
    with :new <- Operations.classify(state.operations, sequence, digest, now()),
         {:ok, operation, operations} <-
           Operations.accept(state.operations, sequence, digest, work.tokens) do
      GenServer.reply(from, {:ok, operation})
      queue = :queue.in({operation.id, work}, state.queue)
      %{state | operations: operations, queue: queue} |> run_next() |> release()
    else
      {:repeat, operation} ->
        GenServer.reply(from, {:ok, operation})
        state

      {:error, error} ->
        GenServer.reply(from, {:error, error})
        state
    end
  end

  # The calls whose turn has come: the first of a number is accepted, the others are its repeats.
  defp release(%{early: early} = state) when early == %{}, do: state

  defp release(state) do
    {calls, early} = Early.take(state.early, state.operations.next)
    Enum.reduce(calls, %{state | early: early}, &take/2)
  end

  defp refuse({from, _, _, _}, error), do: GenServer.reply(from, {:error, error})

  # Work

  defp run_next(%{running: nil} = state) do
    case :queue.out(state.queue) do
      {{:value, {:dropped, work}}, queue} ->
        run_next(%{
          state
          | queue: queue,
            subject: Work.failed(work, state.subject, "it was cancelled")
        })

      {{:value, {id, work}}, queue} ->
        {subject, where} = {state.subject, where(state, id)}

        task =
          Task.Supervisor.async_nolink(Crucible.Tasks, fn ->
            Work.carry_out(work, subject, where)
          end)

        running = %{ref: task.ref, pid: task.pid, id: id, work: work, stopped: false}

        %{
          state
          | queue: queue,
            running: running,
            operations: Operations.start(state.operations, id)
        }

      {:empty, _} ->
        state
    end
  end

  defp run_next(state), do: state

  defp where(state, id), do: "#{state.service}, operation #{id}"

  defp fail(id, error, state),
    do:
      finish(
        id,
        :OPERATION_STATE_FAILED,
        [failure: Error.to_failure(error, state.service)],
        state
      )

  defp finish(id, final, fields, state) do
    state |> end_operation(id, final, fields) |> run_next() |> stop_when_idle()
  end

  defp end_operation(state, id, final, fields) do
    operations = Operations.finish(state.operations, id, final, fields, now())
    {waiting, others} = Map.pop(state.waiting, id, [])

    for {from, timer} <- waiting do
      Process.cancel_timer(timer)
      GenServer.reply(from, Operations.get(operations, id, now()))
    end

    renew(%{state | operations: operations, waiting: others})
  end

  defp end_cancelled(id, state), do: end_operation(state, id, :OPERATION_STATE_CANCELLED, [])

  defp drop(id, %{running: %{id: id} = running} = state) do
    if running.work.stoppable do
      Task.Supervisor.terminate_child(Crucible.Tasks, running.pid)
      put_in(state.running.stopped, true)
    else
      state
    end
  end

  # What a dropped operation leaves for the next one is left in its place.
  defp drop(id, state) do
    queue =
      :queue.filter(
        fn
          {^id, %Work{failed: nil}} -> false
          {^id, work} -> [{:dropped, work}]
          _ -> true
        end,
        state.queue
      )

    run_next(end_cancelled(id, %{state | queue: queue}))
  end

  defp stop_when_idle(%{closing: true, running: nil} = state), do: {:stop, :normal, state}
  defp stop_when_idle(state), do: {:noreply, state}

  defp renew(state), do: %{state | last_used: now()}
  defp now, do: System.monotonic_time(:millisecond)
end
