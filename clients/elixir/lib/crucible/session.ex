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
  alias Crucible.{Error, Operations, Proto}

  @hold_ms 10_000

  defmodule Work do
    @moduledoc """
    What an operation does.

      * `run`: subject to `{:ok, {member, result}, subject}` or `{:error, error, subject}`; may raise
      * `failed`: what an end by an exception, or by a cancellation before it began, makes of the subject; its second
        argument says which
      * `stoppable`: whether a cancellation may end it while it runs, the subject as it was
      * `tokens`: that it runs through the model, at most
    """
    @enforce_keys [:run]
    defstruct [:run, failed: nil, stoppable: false, tokens: 0]
  end

  @type id :: {kind :: :training | :sampling, String.t()}

  defmodule State do
    @moduledoc false
    defstruct [
      :id,
      :service,
      :subject,
      :operations,
      :lease_ms,
      :last_used,
      :running,
      hold_ms: 10_000,
      queue: :queue.new(),
      # Early calls by number, in the order in which they came.
      held: %{},
      waiting: %{},
      # Who closed the session and waits for the running operation.
      closing: nil
    ]
  end

  # For services

  @doc """
  Starts a session. Options: `id`, `open` (a function to `{:ok, subject}` or `{:error, error}`, run in the session's
  process), `order`, `limits`, `lease_ms`, `service`.
  """
  def start_link(options),
    do: GenServer.start_link(__MODULE__, options, name: via(Keyword.fetch!(options, :id)))

  @doc "Waits until the session has opened what it computes on."
  @spec opened(pid) :: :ok | {:error, Error.t()}
  def opened(pid) do
    GenServer.call(pid, :opened, :infinity)
  catch
    :exit, {{:shutdown, {:not_opened, error}}, _} -> {:error, error}
    :exit, _ -> {:error, unknown("session_id", "that was being opened")}
  end

  @doc "Accepts a call in its turn, or finds its first operation."
  @spec submit(id, pos_integer, binary, %Work{}) ::
          {:ok, Operations.operation()} | {:error, Error.t()}
  def submit(id, sequence, digest, work), do: call(id, {:submit, sequence, digest, work})

  @doc "The operation, finished if that happens within the time."
  @spec await(id, String.t(), non_neg_integer) ::
          {:ok, Operations.operation()} | {:error, Error.t()}
  def await(id, operation_id, milliseconds), do: call(id, {:await, operation_id, milliseconds})

  @doc "Drops an operation that has not begun; ends one that runs, where it may."
  @spec cancel(id, String.t()) :: {:ok, Operations.operation()} | {:error, Error.t()}
  def cancel(id, operation_id), do: call(id, {:cancel, operation_id})

  @doc "What the session computes on as the last finished operation left it, and the number expected next."
  @spec look(id, String.t()) :: {:ok, term, pos_integer} | {:error, Error.t()}
  def look(id, field \\ "session_id"), do: call(id, :look, field)

  @doc "Closes the session after its running operation; unknown is OK."
  @spec close(id) :: :ok
  def close(id) do
    with {:error, _} <- call(id, :close), do: :ok
  end

  @doc "A SHA-256 of a request, the same for equal ones."
  @spec digest(Proto.Schema.name(), Proto.message()) :: binary
  def digest(type, request), do: :crypto.hash(:sha256, Proto.encode(type, request))

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
    state = %State{
      id: options[:id],
      service: options[:service],
      operations: Operations.new(options[:order], options[:limits] || %{}),
      lease_ms: options[:lease_ms],
      hold_ms: options[:hold_ms] || @hold_ms,
      last_used: now()
    }

    {:ok, state, {:continue, options[:open]}}
  end

  @impl true
  def handle_continue(open, state) do
    case open.() do
      {:ok, subject} ->
        Process.send_after(self(), :lease, state.lease_ms)
        {:noreply, %{state | subject: subject, last_used: now()}}

      {:error, error} ->
        {:stop, {:shutdown, {:not_opened, error}}, state}
    end
  end

  @impl true
  def handle_call(:opened, _, state), do: {:reply, :ok, renew(state)}

  def handle_call(:look, _, state),
    do: {:reply, {:ok, state.subject, state.operations.next}, renew(state)}

  def handle_call(:close, from, state) do
    for {_, calls} <- state.held,
        call <- calls,
        do: refuse(call, unknown("session_id", "any more"))

    queued = for {id, _} when id != :dropped <- :queue.to_list(state.queue), do: id
    state = Enum.reduce(queued, state, &end_cancelled/2)
    stop_when_idle(%{state | held: %{}, queue: :queue.new(), closing: from})
  end

  def handle_call(_, _, %{closing: closing} = state) when closing != nil,
    do: {:reply, {:error, unknown("session_id", "any more")}, state}

  def handle_call({:submit, sequence, digest, work}, from, state) do
    state = renew(state)

    case Operations.classify(state.operations, sequence, digest, now()) do
      :early -> {:noreply, hold({from, sequence, digest, work}, state)}
      _ -> {:noreply, take({from, sequence, digest, work}, state)}
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
  def handle_info({:waited, id, from}, state) do
    case List.keytake(state.waiting[id] || [], from, 0) do
      {_, others} ->
        GenServer.reply(from, Operations.get(state.operations, id, now()))
        {:noreply, renew(put_in(state.waiting[id], others))}

      nil ->
        {:noreply, state}
    end
  end

  def handle_info({:held_too_long, sequence, from}, state) do
    {held, state} = unhold(state, sequence, &(elem(&1.call, 0) == from))
    if held, do: refuse(held, Operations.gap(state.operations, sequence))
    {:noreply, state}
  end

  # Whoever sent an early call has hung up.
  def handle_info({:DOWN, monitor, :process, _, _} = down, state) do
    found =
      Enum.find_value(state.held, fn {sequence, calls} ->
        Enum.any?(calls, &(&1.monitor == monitor)) && sequence
      end)

    case found do
      nil -> ended(down, state)
      sequence -> {:noreply, elem(unhold(state, sequence, &(&1.monitor == monitor)), 1)}
    end
  end

  def handle_info({ref, outcome}, %{running: %{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {state, running} = {%{state | running: nil}, state.running}

    case outcome do
      {:ok, result, subject} ->
        finish(running.id, :OPERATION_STATE_SUCCEEDED, [result: result], %{
          state
          | subject: subject
        })

      {:error, error, subject} ->
        fail(running.id, error, %{state | subject: subject})
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

  # A task that was killed: by a cancellation, or by somebody else.
  defp ended({:DOWN, ref, _, _, reason}, %{running: %{ref: ref} = running} = state) do
    state = %{state | running: nil}

    if running.stopped do
      finish(running.id, :OPERATION_STATE_CANCELLED, [], state)
    else
      error = Error.hidden("#{state.service}, operation #{running.id}", :exit, reason, [])
      subject = failed(running.work, state.subject, "it was killed")
      fail(running.id, error, %{state | subject: subject})
    end
  end

  defp ended(_, state), do: {:noreply, state}

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
    {:ok, before} = Operations.get(state.operations, id, now())
    operations = Operations.finish(state.operations, id, final, fields, now())
    # Looked up before its own end evicts it, should nothing be kept.
    operation = Map.get(operations.by_id, id, before)
    {waiting, others} = Map.pop(state.waiting, id, [])

    for {from, timer} <- waiting do
      Process.cancel_timer(timer)
      GenServer.reply(from, {:ok, operation})
    end

    %{state | operations: operations, waiting: others, last_used: now()}
  end

  defp end_cancelled(id, state), do: end_operation(state, id, :OPERATION_STATE_CANCELLED, [])

  defp stop_when_idle(%{closing: from, running: nil} = state) when from != nil do
    GenServer.reply(from, :ok)
    {:stop, :normal, state}
  end

  defp stop_when_idle(state), do: {:noreply, state}

  # Order

  defp take({from, sequence, digest, work}, state) do
    with :new <- Operations.classify(state.operations, sequence, digest, now()),
         {:ok, operation, operations} <-
           Operations.accept(state.operations, sequence, digest, work.tokens) do
      GenServer.reply(from, {:ok, operation})
      queue = :queue.in({operation.id, work}, state.queue)
      %{state | operations: operations, queue: queue} |> run_next() |> release()
    else
      {:repeat, operation} -> answer(from, {:ok, operation}, state)
      {:error, error} -> answer(from, {:error, error}, state)
    end
  end

  defp answer(from, reply, state) do
    GenServer.reply(from, reply)
    state
  end

  # The calls whose turn has come: the first of a number is accepted, the others are its repeats.
  defp release(%{operations: %{ordered: false}} = state), do: state

  defp release(state) do
    {calls, held} = Map.pop(state.held, state.operations.next, [])

    Enum.reduce(calls, %{state | held: held}, fn held, state ->
      let_go(held)
      take(held.call, state)
    end)
  end

  defp hold({{pid, _} = from, sequence, _, _} = call, state) do
    held = %{
      call: call,
      monitor: Process.monitor(pid),
      timer: Process.send_after(self(), {:held_too_long, sequence, from}, state.hold_ms)
    }

    update_in(state.held[sequence], &((&1 || []) ++ [held]))
  end

  defp unhold(state, sequence, wanted?) do
    {found, others} = Enum.split_with(state.held[sequence] || [], wanted?)
    Enum.each(found, &let_go/1)

    held =
      if others == [],
        do: Map.delete(state.held, sequence),
        else: Map.put(state.held, sequence, others)

    {List.first(found), %{state | held: held}}
  end

  defp let_go(held) do
    Process.demonitor(held.monitor, [:flush])
    Process.cancel_timer(held.timer)
  end

  defp refuse(held, error), do: GenServer.reply(elem(held.call, 0), {:error, error})

  # Work

  defp run_next(%{running: nil} = state) do
    case :queue.out(state.queue) do
      {{:value, {:dropped, work}}, queue} ->
        subject = failed(work, state.subject, "it was cancelled")
        run_next(%{state | queue: queue, subject: subject})

      {{:value, {id, work}}, queue} ->
        {subject, where} = {state.subject, "#{state.service}, operation #{id}"}

        task =
          Task.Supervisor.async_nolink(Crucible.Tasks, fn -> carry_out(work, subject, where) end)

        running = %{ref: task.ref, pid: task.pid, id: id, work: work, stopped: false}
        operations = Operations.start(state.operations, id)
        %{state | queue: queue, running: running, operations: operations}

      {:empty, _} ->
        state
    end
  end

  defp run_next(state), do: state

  defp carry_out(work, subject, where) do
    work.run.(subject)
  rescue
    error in Error ->
      {:error, error, failed(work, subject, "it ended with #{error.reason}")}

    error ->
      hidden = Error.hidden(where, :error, error, __STACKTRACE__)
      {:error, hidden, failed(work, subject, "it ended with #{inspect(error.__struct__)}")}
  end

  defp failed(%Work{failed: nil}, subject, _), do: subject
  defp failed(work, subject, reason), do: work.failed.(subject, reason)

  defp drop(id, %{running: %{id: id} = running} = state) do
    if running.work.stoppable do
      Task.Supervisor.terminate_child(Crucible.Tasks, running.pid)
      put_in(state.running.stopped, true)
    else
      state
    end
  end

  # Whatever a dropped operation leaves for the next one is left in its place.
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

  defp renew(state), do: %{state | last_used: now()}
  defp now, do: System.monotonic_time(:millisecond)
end
