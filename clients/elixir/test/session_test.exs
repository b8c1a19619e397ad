defmodule Crucible.SessionTest do
  use ExUnit.Case
  alias Crucible.{Error, Session, Sessions}
  alias Crucible.Session.Work

  setup do
    start_supervised!({Registry, keys: :unique, name: Crucible.SessionRegistry})
    start_supervised!({Task.Supervisor, name: Crucible.Tasks})
    :ok
  end

  # The subject is the list of what was run.
  defp open(options \\ []) do
    id = {:training, inspect(make_ref())}
    test = self()

    defaults = [
      id: id,
      open: fn -> {:ok, []} end,
      opened: &send(test, {:opened, id, &1}),
      order: :ordered,
      service: "a.Service",
      lease_ms: 60_000
    ]

    {id, start_supervised!({Session, Keyword.merge(defaults, options)}, id: id)}
  end

  defp note(name), do: %Work{run: fn done -> {:ok, {:noted, name}, [name | done]} end}

  # Runs until the test lets it go.
  defp blocking(name, fields \\ []) do
    test = self()

    struct!(
      %Work{
        run: fn done ->
          send(test, {:runs, name, self()})

          receive do
            :go -> {:ok, {:noted, name}, [name | done]}
            {:raise, error} -> raise error
          end
        end,
        failed: fn done, reason -> [{name, reason} | done] end
      },
      fields
    )
  end

  defp running(name) do
    assert_receive {:runs, ^name, pid}, 5_000
    pid
  end

  defp submit(id, sequence, work), do: Session.submit(id, sequence, "digest #{sequence}", work)

  defp result(id, {:ok, operation}),
    do: with({:ok, operation} <- Session.await(id, operation.id, 30_000), do: operation)

  defp done(id) do
    {:ok, done, _} = Session.look(id)
    Enum.reverse(done)
  end

  test "calls run in the order of their numbers, early ones in their turn" do
    {id, pid} = open()
    early = for number <- [3, 2], do: Task.async(fn -> submit(id, number, note(number)) end)
    wait_until_held(pid, 2)
    submit(id, 1, note(1))
    Enum.each(Task.await_many(early), &result(id, &1))
    assert done(id) == [1, 2, 3]
  end

  test "a repeat while the first is held gets its operation" do
    {id, pid} = open()
    twice = for _ <- 1..2, do: Task.async(fn -> submit(id, 2, note(2)) end)
    wait_until_held(pid, 2)
    submit(id, 1, note(1))
    [{:ok, first}, {:ok, second}] = Task.await_many(twice)
    assert first.id == second.id
    result(id, {:ok, first})
    assert done(id) == [1, 2]
  end

  test "a call whose turn does not come is refused with the number that is expected" do
    {id, _} = open(hold_ms: 0)

    assert {:error, %{reason: "SEQUENCE_GAP", metadata: %{"expected" => "1"}}} =
             submit(id, 2, note(2))
  end

  test "an early call whose caller has hung up is never run" do
    {id, pid} = open()
    caller = spawn(fn -> submit(id, 2, note("gone")) end)
    wait_until_held(pid, 1)
    Process.exit(caller, :kill)
    wait_until_held(pid, 0)
    submit(id, 1, note(1))
    assert result(id, submit(id, 2, note(2))).state == :OPERATION_STATE_SUCCEEDED
    assert done(id) == [1, 2]
  end

  test "cancelling what has not begun leaves its failure in its place" do
    {id, _} = open()
    submit(id, 1, blocking(1))
    {:ok, second} = submit(id, 2, blocking(2))
    third = submit(id, 3, note(3))
    task = running(1)
    assert {:ok, %{state: :OPERATION_STATE_CANCELLED}} = Session.cancel(id, second.id)
    send(task, :go)
    result(id, third)
    assert done(id) == [1, {2, "it was cancelled"}, 3]
  end

  test "cancelling what runs ends it where it may" do
    {id, _} = open()
    {:ok, first} = submit(id, 1, blocking(1))
    task = running(1)
    assert {:ok, %{state: :OPERATION_STATE_RUNNING}} = Session.cancel(id, first.id)
    send(task, :go)
    assert result(id, {:ok, first}).state == :OPERATION_STATE_SUCCEEDED
    {:ok, second} = submit(id, 2, blocking(2, stoppable: true))
    running(2)
    Session.cancel(id, second.id)
    assert result(id, {:ok, second}).state == :OPERATION_STATE_CANCELLED
    assert done(id) == [1]
  end

  test "an exception fails the operation, hides its text, and the session goes on" do
    {id, _} = open()
    first = submit(id, 1, blocking(1))
    send(running(1), {:raise, RuntimeError.exception("secret detail")})
    failed = result(id, first)
    assert failed.state == :OPERATION_STATE_FAILED
    assert failed.failure.reason == "INTERNAL_BUG"
    refute inspect(failed.failure) =~ "secret"
    second = submit(id, 2, blocking(2))
    send(running(2), {:raise, Error.new(:failed_precondition, "NUMERIC_ERROR", "too large")})
    assert %{reason: "NUMERIC_ERROR", source: "a.Service"} = result(id, second).failure
    third = submit(id, 3, blocking(3))
    Process.exit(running(3), :kill)
    assert result(id, third).failure.reason == "INTERNAL_BUG"

    assert done(id) == [
             {1, "it ended with RuntimeError"},
             {2, "it ended with NUMERIC_ERROR"},
             {3, "it was killed"}
           ]
  end

  test "a wait that runs out answers the unfinished operation" do
    {id, _} = open()
    {:ok, first} = submit(id, 1, blocking(1))
    task = running(1)

    for wait <- [0, 1],
        do:
          assert(
            {:ok, %{state: :OPERATION_STATE_RUNNING, result: nil}} =
              Session.await(id, first.id, wait)
          )

    send(task, :go)
    assert result(id, {:ok, first}).result == {:noted, 1}
  end

  test "closing drops what waits, lets what runs end, and answers everybody" do
    {id, pid} = open()
    {:ok, first} = submit(id, 1, blocking(1))
    {:ok, second} = submit(id, 2, note(2))
    early = Task.async(fn -> submit(id, 9, note(9)) end)
    waiting = Task.async(fn -> Session.await(id, second.id, 30_000) end)
    first_result = Task.async(fn -> Session.await(id, first.id, 30_000) end)
    wait_until_held(pid, 1)
    wait_until(pid, &(map_size(&1.waiting) == 2))
    task = running(1)
    closing = Task.async(fn -> Session.close(id) end)
    assert {:ok, %{state: :OPERATION_STATE_CANCELLED}} = Task.await(waiting)
    assert {:error, %{reason: "SESSION_NOT_FOUND"}} = Task.await(early)
    send(task, :go)
    assert {:ok, %{state: :OPERATION_STATE_SUCCEEDED}} = Task.await(first_result)
    assert Task.await(closing) == :ok
    assert {:error, %{reason: "SESSION_NOT_FOUND"}} = submit(id, 3, note(3))
    assert Session.close(id) == :ok
  end

  test "a lease ends a session that nobody names, not one that has work" do
    {id, pid} = open(lease_ms: 0, open: fn -> receive(do: (:go -> {:ok, []})) end)
    work = blocking(1)
    first = Task.async(fn -> submit(id, 1, work) end)
    wait_until_asked(pid)
    monitor = Process.monitor(pid)
    send(pid, :go)
    {:ok, _} = Task.await(first)
    task = running(1)
    # Asked again since its lease ended.
    :sys.get_state(pid)
    refute_received {:DOWN, ^monitor, _, _, _}
    send(task, :go)
    assert_receive {:DOWN, ^monitor, _, _, :normal}, 5_000
  end

  # A call is in the process's mailbox.
  defp wait_until_asked(pid) do
    {:message_queue_len, count} = Process.info(pid, :message_queue_len)
    if count == 0, do: wait_until_asked(pid)
  end

  defp wait_until_held(pid, count),
    do: wait_until(pid, &(&1.early |> Map.values() |> List.flatten() |> length() == count))

  defp wait_until(pid, condition) do
    unless condition.(:sys.get_state(pid)), do: wait_until(pid, condition)
  end

  describe "the table" do
    setup do
      start_supervised!({DynamicSupervisor, name: Crucible.SessionSupervisor})
      start_supervised!({Sessions, kind: :training, limit: 2})
      :ok
    end

    defp create(request_id, digest, open \\ fn -> {:ok, []} end),
      do:
        Sessions.create(:training, request_id, digest,
          open: open,
          order: :ordered,
          service: "a",
          lease_ms: 60_000
        )

    test "one session a request id, however many ask at once" do
      ids =
        1..4 |> Enum.map(fn _ -> Task.async(fn -> create("a", "d") end) end) |> Task.await_many()

      assert [{:ok, id}] = Enum.uniq(ids)
      assert {:error, %{reason: "REQUEST_ID_REUSED"}} = create("a", "other")
      assert {:ok, other} = create("b", "d")
      assert other != id
      assert {:error, %{reason: "TOO_MANY_SESSIONS", retry_delay: 5}} = create("c", "d")
      Session.close(id)
      assert {:ok, third} = create("a", "d")
      assert third not in [id, other]
    end

    test "one that cannot be opened is not there, and its request id is free" do
      error = Error.new(:not_found, "MODEL_NOT_FOUND", "no")
      assert {:error, ^error} = create("a", "d", fn -> {:error, error} end)
      assert {:ok, _} = create("a", "d")
    end
  end
end
