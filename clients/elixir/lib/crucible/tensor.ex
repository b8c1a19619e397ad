defmodule Crucible.Tensor do
  @moduledoc "Tensors and token ids between lists and the wire: little-endian, row-major, no padding."

  import Bitwise
  alias Crucible.{Error, Proto}

  @max_float32 3.4028234663852886e38
  @sizes %{
    D_TYPE_FLOAT32: 4,
    D_TYPE_BFLOAT16: 2,
    D_TYPE_FLOAT16: 2,
    D_TYPE_FLOAT64: 8,
    D_TYPE_INT32: 4,
    D_TYPE_INT64: 8,
    D_TYPE_UINT8: 1,
    D_TYPE_BOOL: 1
  }

  @doc "A vector of float32."
  @spec floats([float]) :: Proto.message()
  def floats(list),
    do: %{dtype: :D_TYPE_FLOAT32, shape: [length(list)], storage: {:dense, pack_floats(list)}}

  @doc "float32 numbers in bytes; what float32 cannot hold becomes infinite."
  @spec pack_floats([float]) :: binary
  def pack_floats(list), do: for(x <- list, into: <<>>, do: float32(x))

  defp float32(x) when x > @max_float32, do: <<0x7F80_0000::little-32>>
  defp float32(x) when x < -@max_float32, do: <<0xFF80_0000::little-32>>
  defp float32(x), do: <<x::float-little-32>>

  @doc "int32 ids in bytes."
  @spec pack_tokens([integer]) :: binary
  def pack_tokens(list), do: for(x <- list, into: <<>>, do: <<x::little-32>>)

  @doc "The ids of int32 bytes. Raises FIELD_INVALID when they are no multiple of 4."
  @spec unpack_tokens!(binary, String.t()) :: [integer]
  def unpack_tokens!(data, field) when rem(byte_size(data), 4) != 0,
    do:
      raise(
        Error.field(
          field,
          "has #{byte_size(data)} bytes, not a multiple of 4: send little-endian int32"
        )
      )

  def unpack_tokens!(data, _), do: for(<<x::signed-little-32 <- data>>, do: x)

  @doc """
  The numbers of a dense tensor of shape [length] and one of the dtypes.

  Raises FIELD_INVALID naming dtype, shape or the element that is not finite, and TENSOR_SIZE_MISMATCH.
  """
  @spec vector!(Proto.message(), String.t(), non_neg_integer, [atom]) :: [number]
  def vector!(tensor, field, length, dtypes) do
    size =
      @sizes[tensor.dtype] ||
        raise Error.field("#{field}.dtype", "not given or unknown: set one of the D_TYPE_ values")

    data = dense!(tensor, field)
    expected = Enum.reduce(tensor.shape, size, &(&1 * &2))

    if byte_size(data) != expected do
      raise Error.new(
              :invalid_argument,
              "TENSOR_SIZE_MISMATCH",
              "#{field}: shape #{shown(tensor.shape)} needs #{expected} bytes, got #{byte_size(data)}",
              metadata: %{field: field, expected_bytes: expected, actual_bytes: byte_size(data)}
            )
    end

    if tensor.dtype not in dtypes,
      do:
        raise(
          Error.field(
            "#{field}.dtype",
            "is #{name(tensor.dtype)}: send #{Enum.map_join(dtypes, " or ", &name/1)}"
          )
        )

    if tensor.shape != [length],
      do:
        raise(
          Error.field(
            "#{field}.shape",
            "is #{shown(tensor.shape)}, the input has #{length} tokens: send [#{length}]"
          )
        )

    numbers(tensor.dtype, data, field)
  end

  defp dense!(%{storage: {:dense, data}}, _), do: data

  defp dense!(tensor, field) do
    kind = with {kind, _} <- tensor.storage, do: kind, else: (nil -> "nothing")
    raise Error.field(field, "is stored as #{kind}; send the elements in `dense`")
  end

  defp numbers(:D_TYPE_INT32, data, _), do: for(<<x::signed-little-32 <- data>>, do: x)
  defp numbers(:D_TYPE_INT64, data, _), do: for(<<x::signed-little-64 <- data>>, do: x)

  defp numbers(:D_TYPE_FLOAT32, data, field) do
    list = for <<x::float-little-32 <- data>>, do: x
    # The comprehension ends at the first that is no number.
    if length(list) * 4 == byte_size(data), do: list, else: raise(not_finite(data, field))
  end

  defp not_finite(data, field) do
    bits = for <<x::little-32 <- data>>, do: x
    index = Enum.find_index(bits, &((&1 >>> 23 &&& 0xFF) == 0xFF))

    shown =
      case Enum.at(bits, index) do
        0x7F80_0000 -> "inf"
        0xFF80_0000 -> "-inf"
        _ -> "nan"
      end

    Error.field("#{field}[#{index}]", "is #{shown}: give finite numbers")
  end

  defp name(dtype),
    do: dtype |> Atom.to_string() |> String.replace_prefix("D_TYPE_", "") |> String.downcase()

  defp shown(shape), do: "[#{Enum.join(shape, ", ")}]"
end
