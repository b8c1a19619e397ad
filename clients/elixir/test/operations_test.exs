defmodule Crucible.OperationsTest do
  use ExUnit.Case, async: true
  alias Crucible.Operations

  defp accepted(operations, sequence, digest \\ "d", tokens \\ 0) do
    assert Operations.classify(operations, sequence, digest, 0) == :new
    {:ok, operation, operations} = Operations.accept(operations, sequence, digest, tokens)
    {operation, operations}
  end

  defp finished(operations, id, now \\ 0),
    do: Operations.finish(operations, id, :OPERATION_STATE_SUCCEEDED, [result: :r], now)

  test "dense numbers: new, early within the window, a gap beyond it" do
    operations = Operations.new(:ordered)
    assert Operations.classify(operations, 1, "d", 0) == :new
    assert Operations.classify(operations, 2, "d", 0) == :early
    assert Operations.classify(operations, 65, "d", 0) == :early
    assert {:error, error} = Operations.classify(operations, 66, "d", 0)
    assert {error.reason, error.metadata["expected"]} == {"SEQUENCE_GAP", "1"}
  end

  test "a repeat gets the first operation, another payload is refused, and neither uses a number" do
    {first, operations} = accepted(Operations.new(:ordered), 1)
    assert {:repeat, ^first} = Operations.classify(operations, 1, "d", 0)
    assert {:error, %{reason: "SEQUENCE_REUSED"}} = Operations.classify(operations, 1, "other", 0)
    assert operations.next == 2
  end

  test "results are kept until enough later ones, or time" do
    {one, operations} = accepted(Operations.new(:ordered, kept: 2, kept_ms: 100), 1)
    {two, operations} = accepted(operations, 2)
    operations = operations |> finished(one.id, 0) |> finished(two.id, 50)
    assert {:ok, _} = Operations.get(operations, one.id, 100)
    assert {:error, %{reason: "OPERATION_NOT_FOUND"}} = Operations.get(operations, one.id, 101)
    assert {:ok, _} = Operations.get(operations, two.id, 101)
    {three, operations} = accepted(operations, 3)
    operations = finished(operations, three.id, 60)

    assert {:error, %{reason: "OPERATION_NOT_FOUND"}} =
             Operations.classify(operations, 1, "d", 60)

    assert {:repeat, _} = Operations.classify(operations, 2, "d", 60)
  end

  test "what is unfinished is limited, and a refused call uses no number" do
    {one, operations} =
      accepted(Operations.new(:ordered, max_unfinished: 1, max_tokens: 10), 1, "d", 4)

    assert {:error, %{reason: "TOO_MANY_IN_FLIGHT", retry_delay: 1}} =
             Operations.accept(operations, 2, "d", 0)

    operations = finished(operations, one.id)
    assert {:error, %{reason: "TOO_MANY_TOKENS"}} = Operations.accept(operations, 2, "d", 11)
    assert {_, %{next: 3, tokens: 10}} = accepted(operations, 2, "d", 10)
  end

  test "an ended operation stays as it is" do
    {one, operations} = accepted(Operations.new(:ordered), 1)
    operations = finished(operations, one.id)
    assert Operations.finish(operations, one.id, :OPERATION_STATE_CANCELLED, [], 0) == operations
  end

  test "unordered: any number that was not used is new, for ever" do
    operations =
      Enum.reduce([7, 2, 1], Operations.new(:unordered, kept: 0), fn number, operations ->
        {operation, operations} = accepted(operations, number)
        finished(operations, operation.id)
      end)

    assert {operations.next, MapSet.to_list(operations.used)} == {3, [7]}

    for number <- [1, 2, 7],
        do:
          assert(
            {:error, %{reason: "OPERATION_NOT_FOUND"}} =
              Operations.classify(operations, number, "d", 0)
          )

    assert Operations.classify(operations, 6, "d", 0) == :new
  end
end
