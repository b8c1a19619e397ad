defmodule Crucible.Proto.Wire do
  @moduledoc """
  Protobuf's wire format below the messages: varints, fixed numbers, lengths, groups to skip.

  Numbers that Erlang's floats cannot hold are the atoms `:nan`, `:infinity` and `:negative_infinity`. Bytes that are
  no valid encoding end in `throw(:malformed)`, which `Crucible.Proto.decode/2` catches.
  """

  import Bitwise

  @max_uint64 0xFFFF_FFFF_FFFF_FFFF
  @max_groups 100

  @varint_types [:int32, :int64, :uint32, :uint64, :sint32, :sint64, :bool]
  @fixed64_types [:double, :fixed64, :sfixed64]
  @fixed32_types [:float, :fixed32, :sfixed32]

  @doc "The wire type of a scalar or enum: 0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes."
  @spec wire_type(atom | tuple) :: 0 | 1 | 2 | 5
  def wire_type(type) when type in @varint_types, do: 0
  def wire_type(type) when type in @fixed64_types, do: 1
  def wire_type(type) when type in @fixed32_types, do: 5
  def wire_type({:enum, _}), do: 0
  def wire_type(_), do: 2

  @doc "Reads a varint, 64 bits at most."
  @spec varint(binary) :: {non_neg_integer, binary}
  def varint(<<0::1, v::7, rest::binary>>), do: {v, rest}
  def varint(<<1::1, a::7, 0::1, b::7, rest::binary>>), do: {b <<< 7 ||| a, rest}
  def varint(data), do: long_varint(data, 0, 0)

  defp long_varint(<<1::1, v::7, rest::binary>>, shift, value) when shift < 63,
    do: long_varint(rest, shift + 7, value ||| v <<< shift)

  defp long_varint(<<0::1, v::7, rest::binary>>, shift, value),
    do: {(value ||| v <<< shift) &&& @max_uint64, rest}

  defp long_varint(_, _, _), do: throw(:malformed)

  @doc "Writes a whole number, negative ones as 64 bits of two's complement."
  @spec put_varint(integer) :: binary
  def put_varint(value) when value < 0, do: put_varint(value &&& @max_uint64)
  def put_varint(value) when value < 128, do: <<value>>
  def put_varint(value), do: <<1::1, value::7, put_varint(value >>> 7)::binary>>

  @doc "Reads a field's number and wire type."
  @spec key(binary) :: {pos_integer, 0..5, binary}
  def key(data) do
    {key, rest} = varint(data)
    number = key >>> 3
    if key > 0xFFFF_FFFF or number == 0 or (key &&& 7) > 5, do: throw(:malformed)
    {number, key &&& 7, rest}
  end

  @doc "Writes a field's number and wire type."
  @spec put_key(pos_integer, 0..5) :: binary
  def put_key(number, wire), do: put_varint(number <<< 3 ||| wire)

  @doc "Reads a length and so many bytes."
  @spec length_delimited(binary) :: {binary, binary}
  def length_delimited(data) do
    {size, rest} = varint(data)

    case rest do
      <<value::binary-size(size), rest::binary>> -> {value, rest}
      _ -> throw(:malformed)
    end
  end

  @doc "Reads a scalar's value of its own wire type."
  @spec scalar(atom, binary) :: {term, binary}
  def scalar(type, data) when type in @varint_types do
    {value, rest} = varint(data)
    {from_varint(type, value), rest}
  end

  def scalar(:double, <<value::float-little-64, rest::binary>>), do: {value, rest}

  def scalar(:double, <<bits::little-64, rest::binary>>),
    do: {special(bits >>> 63, bits <<< 12 &&& @max_uint64), rest}

  def scalar(:float, <<value::float-little-32, rest::binary>>), do: {value, rest}

  def scalar(:float, <<bits::little-32, rest::binary>>),
    do: {special(bits >>> 31, bits <<< 9 &&& 0xFFFF_FFFF), rest}

  def scalar(:fixed64, <<value::little-64, rest::binary>>), do: {value, rest}
  def scalar(:sfixed64, <<value::signed-little-64, rest::binary>>), do: {value, rest}
  def scalar(:fixed32, <<value::little-32, rest::binary>>), do: {value, rest}
  def scalar(:sfixed32, <<value::signed-little-32, rest::binary>>), do: {value, rest}
  def scalar(:bytes, data), do: length_delimited(data)

  def scalar(:string, data) do
    {value, rest} = length_delimited(data)
    if not String.valid?(value), do: throw(:malformed)
    {value, rest}
  end

  def scalar(_, _), do: throw(:malformed)

  defp special(_, fraction) when fraction != 0, do: :nan
  defp special(0, _), do: :infinity
  defp special(1, _), do: :negative_infinity

  defp from_varint(:uint64, value), do: value
  defp from_varint(:uint32, value), do: value &&& 0xFFFF_FFFF
  defp from_varint(:bool, value), do: value != 0
  defp from_varint(:sint32, value), do: from_varint(:sint64, value &&& 0xFFFF_FFFF)
  defp from_varint(:sint64, value), do: bxor(value >>> 1, -(value &&& 1))

  defp from_varint(:int32, value) do
    <<signed::signed-32>> = <<value::32>>
    signed
  end

  defp from_varint(:int64, value) do
    <<signed::signed-64>> = <<value::64>>
    signed
  end

  @doc "Writes a scalar's value without its key."
  @spec put_scalar(atom, term) :: iodata
  def put_scalar(type, value) when type in [:int32, :int64, :uint32, :uint64],
    do: put_varint(value)

  def put_scalar(:bool, value), do: if(value, do: <<1>>, else: <<0>>)

  def put_scalar(type, value) when type in [:sint32, :sint64],
    do: put_varint(if value < 0, do: -2 * value - 1, else: 2 * value)

  def put_scalar(type, value) when type in [:fixed64, :sfixed64], do: <<value::little-64>>
  def put_scalar(type, value) when type in [:fixed32, :sfixed32], do: <<value::little-32>>
  def put_scalar(type, value) when type in [:double, :float], do: put_float(type, value)

  def put_scalar(type, value) when type in [:string, :bytes],
    do: [put_varint(byte_size(value)), value]

  defp put_float(:double, :nan), do: <<0x7FF8_0000_0000_0000::little-64>>
  defp put_float(:double, :infinity), do: <<0x7FF0_0000_0000_0000::little-64>>
  defp put_float(:double, :negative_infinity), do: <<0xFFF0_0000_0000_0000::little-64>>
  defp put_float(:double, value), do: <<value::float-little-64>>
  defp put_float(:float, :nan), do: <<0x7FC0_0000::little-32>>
  defp put_float(:float, :infinity), do: <<0x7F80_0000::little-32>>
  defp put_float(:float, :negative_infinity), do: <<0xFF80_0000::little-32>>
  defp put_float(:float, value), do: <<value::float-little-32>>

  @doc "What follows a value of any wire type, whose key was read."
  @spec skip(pos_integer, 0..5, binary, non_neg_integer) :: binary
  def skip(number, wire, data, depth \\ 0)
  def skip(_, 0, data, _), do: data |> varint() |> elem(1)
  def skip(_, 1, <<_::64, rest::binary>>, _), do: rest
  def skip(_, 2, data, _), do: data |> length_delimited() |> elem(1)
  def skip(number, 3, data, depth) when depth < @max_groups, do: skip_group(number, data, depth)
  def skip(_, 5, <<_::32, rest::binary>>, _), do: rest
  def skip(_, _, _, _), do: throw(:malformed)

  defp skip_group(number, data, depth) do
    case key(data) do
      {^number, 4, rest} -> rest
      {inner, wire, rest} -> skip_group(number, skip(inner, wire, rest, depth + 1), depth)
    end
  end
end
