defmodule Crucible.Operations do
  @moduledoc """
  The operations of one session: which call is new, repeated or early, and which results are still kept. Plain data: the
  session's process owns it and runs what is queued.

  Ordered sessions (training) take dense numbers from 1. Unordered ones (sampling) take any number that was not used.
  """

  alias Crucible.{Error, Proto}

  @window 64
  @kept 64
  @kept_ms 600_000
  @final [
    :OPERATION_STATE_SUCCEEDED,
    :OPERATION_STATE_FAILED,
    :OPERATION_STATE_CANCELLED
  ]

  @enforce_keys [:ordered]
  defstruct ordered: true,
            # Ordered: the number expected next. Unordered: all numbers below it are used, and those in `used`.
            next: 1,
            used: MapSet.new(),
            by_id: %{},
            by_sequence: %{},
            # Ids of the finished ones, the oldest first.
            finished: :queue.new(),
            unfinished: 0,
            tokens: 0,
            max_unfinished: 64,
            max_tokens: 4 * 1024 * 1024,
            kept: @kept,
            kept_ms: @kept_ms

  defmodule Operation do
    @moduledoc "One accepted call."
    @enforce_keys [:id, :sequence, :digest, :tokens, :create_time]
    defstruct [
      :id,
      :sequence,
      :digest,
      :tokens,
      :create_time,
      :expire_time,
      :finished_at,
      :failure,
      # {member, value} of AwaitOperationResponse's oneof `result`
      :result,
      state: :OPERATION_STATE_QUEUED
    ]
  end

  @type t :: %__MODULE__{}
  @type operation :: %Operation{}
  @type limits :: %{
          optional(:max_unfinished) => pos_integer,
          optional(:max_tokens) => pos_integer
        }

  @doc "No operations yet."
  @spec new(:ordered | :unordered, Enumerable.t()) :: t
  def new(order, limits \\ %{}),
    do: struct!(%__MODULE__{ordered: order == :ordered}, limits)

  @doc """
  What a checked call of this number is: new; a repeat with its first operation; early, to be held until its turn; or
  refused with SEQUENCE_GAP, SEQUENCE_REUSED or OPERATION_NOT_FOUND. None uses up a number.
  """
  @spec classify(t, pos_integer, binary, integer) ::
          :new | :early | {:repeat, operation} | {:error, Error.t()}
  def classify(%{ordered: true} = operations, sequence, digest, now) do
    cond do
      sequence > operations.next + @window -> {:error, gap(operations, sequence)}
      sequence > operations.next -> :early
      sequence == operations.next -> :new
      true -> repeated(operations, sequence, digest, now)
    end
  end

  def classify(operations, sequence, digest, now) do
    if sequence < operations.next or MapSet.member?(operations.used, sequence),
      do: repeated(operations, sequence, digest, now),
      else: :new
  end

  @doc "The refusal of a call whose turn has not come."
  @spec gap(t, pos_integer) :: Error.t()
  def gap(operations, sequence) do
    Error.new(
      :failed_precondition,
      "SEQUENCE_GAP",
      "sequence: #{sequence} came while #{operations.next} is expected: send that one first",
      metadata: %{field: "sequence", expected: operations.next, sequence: sequence}
    )
  end

  defp repeated(operations, sequence, digest, now) do
    operations = evict(operations, now)

    case operations.by_sequence do
      %{^sequence => id} ->
        operation = operations.by_id[id]

        if operation.digest == digest do
          {:repeat, operation}
        else
          {:error,
           Error.new(
             :invalid_argument,
             "SEQUENCE_REUSED",
             "sequence: #{sequence} was used for another request: number every new call anew",
             metadata: %{field: "sequence", sequence: sequence}
           )}
        end

      _ ->
        {:error, expired("the operation of sequence #{sequence}")}
    end
  end

  @doc "Takes in a new call, unless too much is unfinished: then RESOURCE_EXHAUSTED, and the number stays free."
  @spec accept(t, pos_integer, binary, non_neg_integer) ::
          {:ok, operation, t} | {:error, Error.t()}
  def accept(operations, sequence, digest, tokens) do
    with :ok <- check_room(operations, tokens) do
      operation = %Operation{
        id: Base.encode16(:crypto.strong_rand_bytes(16), case: :lower),
        sequence: sequence,
        digest: digest,
        tokens: tokens,
        create_time: System.os_time(:nanosecond)
      }

      operations = %{
        use_number(operations, sequence)
        | by_id: Map.put(operations.by_id, operation.id, operation),
          by_sequence: Map.put(operations.by_sequence, sequence, operation.id),
          unfinished: operations.unfinished + 1,
          tokens: operations.tokens + tokens
      }

      {:ok, operation, operations}
    end
  end

  defp use_number(%{ordered: true} = operations, sequence), do: %{operations | next: sequence + 1}

  defp use_number(operations, sequence),
    do: settle(%{operations | used: MapSet.put(operations.used, sequence)})

  defp settle(%{next: next, used: used} = operations) do
    if MapSet.member?(used, next),
      do: settle(%{operations | next: next + 1, used: MapSet.delete(used, next)}),
      else: operations
  end

  defp check_room(%{unfinished: unfinished, max_unfinished: limit}, _) when unfinished >= limit do
    {:error,
     Error.new(
       :resource_exhausted,
       "TOO_MANY_IN_FLIGHT",
       "the session has #{unfinished} unfinished operations: await some first",
       metadata: %{limit: limit, in_flight: unfinished},
       retry_delay: 1
     )}
  end

  defp check_room(%{tokens: held, max_tokens: limit}, tokens) when held + tokens > limit do
    {:error,
     Error.new(
       :resource_exhausted,
       "TOO_MANY_TOKENS",
       "the session's unfinished operations have #{held} tokens, and #{tokens} more would pass its limit of " <>
         "#{limit}: await some first",
       metadata: %{limit: limit, in_flight: held, tokens: tokens},
       retry_delay: 1
     )}
  end

  defp check_room(_, _), do: :ok

  @doc "The operation, or OPERATION_NOT_FOUND when it is unknown or its result has expired."
  @spec get(t, String.t(), integer) :: {:ok, operation} | {:error, Error.t()}
  def get(operations, id, now) do
    case evict(operations, now).by_id do
      %{^id => operation} -> {:ok, operation}
      _ -> {:error, expired("operation #{inspect(id)}")}
    end
  end

  @doc "Marks an operation as being carried out."
  @spec start(t, String.t()) :: t
  def start(operations, id),
    do: put_in(operations.by_id[id].state, :OPERATION_STATE_RUNNING)

  @doc "Ends an operation, `now` in monotonic milliseconds; an ended one stays as it is."
  @spec finish(t, String.t(), atom, keyword, integer) :: t
  def finish(operations, id, state, fields, now) when state in @final do
    case operations.by_id do
      %{^id => %{state: before} = operation} when before not in @final ->
        operation =
          struct!(operation, [
            {:state, state},
            {:finished_at, now},
            {:expire_time, System.os_time(:nanosecond) + operations.kept_ms * 1_000_000} | fields
          ])

        evict(
          %{
            operations
            | by_id: Map.put(operations.by_id, id, operation),
              finished: :queue.in(id, operations.finished),
              unfinished: operations.unfinished - 1,
              tokens: operations.tokens - operation.tokens
          },
          now
        )

      _ ->
        operations
    end
  end

  @doc "Whether an operation has ended."
  @spec final?(operation) :: boolean
  def final?(operation), do: operation.state in @final

  @doc "Without the results that nobody may count on any more."
  @spec evict(t, integer) :: t
  def evict(operations, now) do
    with {:value, id} <- :queue.peek(operations.finished),
         operation = operations.by_id[id],
         true <-
           :queue.len(operations.finished) > operations.kept or
             operation.finished_at < now - operations.kept_ms do
      evict(
        %{
          operations
          | finished: :queue.drop(operations.finished),
            by_id: Map.delete(operations.by_id, id),
            by_sequence: Map.delete(operations.by_sequence, operation.sequence)
        },
        now
      )
    else
      _ -> operations
    end
  end

  @doc "The operation as the wire shows it."
  @spec to_message(operation) :: Proto.message()
  def to_message(operation) do
    Proto.new("crucible.type.v1.Operation", %{
      id: operation.id,
      state: operation.state,
      failure: operation.failure,
      create_time: timestamp(operation.create_time),
      expire_time: operation.expire_time && timestamp(operation.expire_time),
      sequence: operation.sequence
    })
  end

  @doc "A google.protobuf.Timestamp of Unix nanoseconds."
  @spec timestamp(integer) :: Proto.message()
  def timestamp(nanoseconds),
    do: %{seconds: div(nanoseconds, 1_000_000_000), nanos: rem(nanoseconds, 1_000_000_000)}

  defp expired(what) do
    Error.new(
      :not_found,
      "OPERATION_NOT_FOUND",
      "#{what} is unknown, or its result has expired after #{div(@kept_ms, 1000)} s or #{@kept} later results"
    )
  end
end
