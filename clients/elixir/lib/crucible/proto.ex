defmodule Crucible.Proto do
  @moduledoc """
  A small protobuf codec over `Crucible.Proto.Schema`.

  A message is a map with a key for every field: scalars have their default when absent, `optional` and message fields
  nil, enums are atoms (a number where the proto lacks the value), a oneof is `{member, value}` or nil under the name of
  its group. Fields that the schema lacks are kept under `:__unknown__` and written again.
  """

  alias Crucible.Proto.{Schema, Wire}

  # As protobuf's own parsers have it.
  @max_depth 100
  # 32 MiB hold millions of messages of two bytes: reading them would take minutes, and gigabytes.
  @max_messages 512 * 1024
  # A field that is read counts as the eighth part of a message, one that is unknown as a whole.
  @message_parts 8

  @type message :: map

  @doc "A message with these fields, the others at their defaults. Raises KeyError for a field that it lacks."
  @spec new(Schema.name(), Enumerable.t()) :: message
  def new(type, fields \\ %{}),
    do: Enum.reduce(fields, Schema.defaults(type), fn {k, v}, m -> Map.replace!(m, k, v) end)

  @doc "The message in bytes; equal messages give equal bytes."
  @spec encode(Schema.name(), message) :: binary
  def encode(type, message), do: type |> encode_fields(message) |> IO.iodata_to_binary()

  @doc "A SHA-256 of a message, the same for equal ones."
  @spec digest(Schema.name(), message) :: binary
  def digest(type, message), do: :crypto.hash(:sha256, encode(type, message))

  @doc "How many messages one message may hold."
  def max_messages, do: @max_messages

  @doc "The message of these bytes; `:malformed`, or `:too_complex` for one that holds more than `max_messages/0`."
  @spec decode(Schema.name(), binary) :: {:ok, message} | {:error, :malformed | :too_complex}
  def decode(type, data) do
    Process.put(__MODULE__, @max_messages * @message_parts)
    {:ok, decode_message(type, data, Schema.defaults(type), 0)}
  catch
    problem when problem in [:malformed, :too_complex] -> {:error, problem}
  after
    Process.delete(__MODULE__)
  end

  defp count(parts) do
    left = Process.get(__MODULE__) - parts
    if left < 0, do: throw(:too_complex)
    Process.put(__MODULE__, left)
  end

  # Writing

  defp encode_fields(type, message) do
    known = for field <- Schema.fields(type), do: encode_field(field, message)
    [known | Map.get(message, :__unknown__, [])]
  end

  defp encode_field({number, name, type, {:oneof, group}, _}, message) do
    case Map.get(message, group) do
      {^name, value} -> put(number, type, value)
      _ -> []
    end
  end

  defp encode_field({number, name, type, :optional, _}, message) do
    case Map.get(message, name) do
      nil -> []
      value -> put(number, type, value)
    end
  end

  defp encode_field({number, name, type, :repeated, _}, message) do
    case {Map.get(message, name, []), Wire.wire_type(type)} do
      {[], _} -> []
      {values, 2} -> Enum.map(values, &put(number, type, &1))
      {values, _} -> [Wire.put_key(number, 2), delimited(Enum.map(values, &value(type, &1)))]
    end
  end

  defp encode_field({number, name, {:map, key, type}, :map, _}, message) do
    for {k, v} <- message |> Map.get(name, %{}) |> Enum.sort_by(&elem(&1, 0)) do
      [Wire.put_key(number, 2), delimited([put(1, key, k), put(2, type, v)])]
    end
  end

  defp encode_field({number, name, type, :implicit, _}, message) do
    case Map.get(message, name) do
      nil -> []
      value -> if default?(type, value), do: [], else: put(number, type, value)
    end
  end

  defp default?(type, value) when type in [:double, :float] and is_number(value),
    do: <<value::float>> == <<0::64>>

  defp default?({:enum, name}, value), do: Schema.enum_number(name, value) == 0
  defp default?(_, value), do: value in [0, false, ""]

  defp put(number, type, value),
    do: [Wire.put_key(number, Wire.wire_type(type)), value(type, value)]

  defp value({:message, name}, value), do: name |> encode_fields(value) |> delimited()
  defp value({:enum, name}, value), do: Wire.put_varint(Schema.enum_number(name, value))
  defp value(type, value), do: Wire.put_scalar(type, value)

  defp delimited(data), do: [Wire.put_varint(IO.iodata_length(data)), data]

  # Reading. Repeated fields are gathered in reverse.

  defp decode_message(_, _, _, depth) when depth > @max_depth, do: throw(:malformed)

  defp decode_message(type, data, message, depth) do
    message = reverse_lists(type, message)
    message = read_fields(data, Schema.by_number(type), message, depth)
    reverse_lists(type, message)
  end

  defp reverse_lists(type, message) do
    message =
      Enum.reduce(Schema.repeated(type), message, fn name, message ->
        case message do
          %{^name => [_, _ | _] = list} -> %{message | name => Enum.reverse(list)}
          _ -> message
        end
      end)

    case message do
      %{__unknown__: list} -> %{message | __unknown__: Enum.reverse(list)}
      _ -> message
    end
  end

  defp read_fields(<<>>, _, message, _), do: message

  defp read_fields(data, fields, message, depth) do
    {number, wire, rest} = Wire.key(data)

    case fields do
      %{^number => {_, _, type, label, _} = field} ->
        expected = Wire.wire_type(type)

        cond do
          wire == expected ->
            count(1)
            {message, rest} = read_field(field, rest, message, depth)
            read_fields(rest, fields, message, depth)

          wire == 2 and label == :repeated ->
            {packed, rest} = Wire.length_delimited(rest)
            read_fields(rest, fields, read_packed(packed, field, message), depth)

          true ->
            read_unknown(data, number, wire, rest, fields, message, depth)
        end

      _ ->
        read_unknown(data, number, wire, rest, fields, message, depth)
    end
  end

  defp read_unknown(data, number, wire, rest, fields, message, depth) do
    count(@message_parts)
    rest = Wire.skip(number, wire, rest, depth)
    raw = binary_part(data, 0, byte_size(data) - byte_size(rest))
    message = Map.update(message, :__unknown__, [raw], &[raw | &1])
    read_fields(rest, fields, message, depth)
  end

  defp read_field({number, name, {:map, key, type}, :map, _}, data, message, depth) do
    {entry, rest} = Wire.length_delimited(data)

    case read_entry(entry, key, type, zero(key), nil, depth + 1) do
      {key, value} ->
        value = if value == nil, do: zero(type), else: value
        {%{message | name => Map.put(Map.fetch!(message, name), key, value)}, rest}

      # Kept whole, as Python's parser does: a map has no place for what else an entry holds.
      :unknown ->
        raw = IO.iodata_to_binary([Wire.put_key(number, 2), delimited(entry)])
        {Map.update(message, :__unknown__, [raw], &[raw | &1]), rest}
    end
  end

  defp read_field({_, name, type, :repeated, _}, data, message, depth) do
    {value, rest} = read_value(type, data, nil, depth)
    {%{message | name => [value | Map.fetch!(message, name)]}, rest}
  end

  defp read_field({_, name, type, {:oneof, group}, _}, data, message, depth) do
    before = with {^name, value} <- Map.fetch!(message, group), do: value, else: (_ -> nil)
    {value, rest} = read_value(type, data, before, depth)
    {%{message | group => {name, value}}, rest}
  end

  defp read_field({_, name, type, _, _}, data, message, depth) do
    {value, rest} = read_value(type, data, Map.fetch!(message, name), depth)
    {%{message | name => value}, rest}
  end

  # A message field that comes twice is one message: its parts are merged.
  defp read_value({:message, name}, data, before, depth) do
    count(@message_parts)
    {inner, rest} = Wire.length_delimited(data)
    {decode_message(name, inner, before || Schema.defaults(name), depth + 1), rest}
  end

  defp read_value({:enum, name}, data, _, _) do
    {number, rest} = Wire.scalar(:int32, data)
    {Schema.enum_name(name, number), rest}
  end

  defp read_value(type, data, _, _), do: Wire.scalar(type, data)

  defp read_packed(<<>>, _, message), do: message

  defp read_packed(data, {_, name, type, _, _} = field, message) do
    count(1)
    {value, rest} = read_value(type, data, nil, 0)
    read_packed(rest, field, %{message | name => [value | Map.fetch!(message, name)]})
  end

  defp read_entry(<<>>, _, _, key, value, _), do: {key, value}

  defp read_entry(data, key_type, type, key, value, depth) do
    {number, wire, rest} = Wire.key(data)

    cond do
      number == 1 and wire == Wire.wire_type(key_type) ->
        {key, rest} = read_value(key_type, rest, nil, depth)
        read_entry(rest, key_type, type, key, value, depth)

      number == 2 and wire == Wire.wire_type(type) ->
        {value, rest} = read_value(type, rest, value, depth)
        read_entry(rest, key_type, type, key, value, depth)

      true ->
        # What is malformed stays so.
        :unknown = skip_fields(data, depth)
    end
  end

  defp skip_fields(<<>>, _), do: :unknown

  defp skip_fields(data, depth) do
    {number, wire, rest} = Wire.key(data)
    skip_fields(Wire.skip(number, wire, rest, depth), depth)
  end

  defp zero({:message, name}), do: Schema.defaults(name)
  defp zero({:enum, name}), do: Schema.enum_name(name, 0)
  defp zero(type) when type in [:string, :bytes], do: ""
  defp zero(type) when type in [:double, :float], do: 0.0
  defp zero(:bool), do: false
  defp zero(_), do: 0
end
