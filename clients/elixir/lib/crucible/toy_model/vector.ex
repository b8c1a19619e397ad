defmodule Crucible.ToyModel.Vector do
  @moduledoc """
  Vectors of float64 as binaries, little-endian: processes share them without a copy, and they are a file's bytes as they
  are.
  """

  @type t :: binary

  @doc "So many zeros."
  @spec zeros(non_neg_integer) :: t
  def zeros(count), do: :binary.copy(<<0::64>>, count)

  @spec from_list([number]) :: t
  def from_list(list), do: for(x <- list, into: <<>>, do: <<x::float-little-64>>)

  @spec to_list(t) :: [float]
  def to_list(vector), do: for(<<x::float-little-64 <- vector>>, do: x)

  @spec size(t) :: non_neg_integer
  def size(vector), do: div(byte_size(vector), 8)

  @doc "Rows `first` to `first + count - 1` of a vector that is seen as rows of `width`."
  @spec rows(t, non_neg_integer, pos_integer, pos_integer) :: t
  def rows(vector, first, count, width),
    do: binary_part(vector, first * width * 8, count * width * 8)

  @doc "The sum of two vectors of one size."
  @spec add(t, t) :: t
  def add(a, b), do: add(a, b, [])

  defp add(<<x::float-little-64, a::binary>>, <<y::float-little-64, b::binary>>, sum),
    do: add(a, b, [x + y | sum])

  defp add(<<>>, <<>>, sum), do: sum |> Enum.reverse() |> from_list()

  @doc "The sum of the squares."
  @spec sum_squares(t) :: float
  def sum_squares(vector), do: sum_squares(vector, 0.0)

  defp sum_squares(<<x::float-little-64, rest::binary>>, sum), do: sum_squares(rest, sum + x * x)
  defp sum_squares(<<>>, sum), do: sum
end
