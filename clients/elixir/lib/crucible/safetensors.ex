defmodule Crucible.Safetensors do
  @moduledoc """
  Named float64 vectors in the safetensors format: eight bytes of length, a JSON header, the numbers little-endian.
  Equal vectors give equal bytes. Any safetensors reader takes the files.
  """

  alias Crucible.Files

  @doc "Writes vectors, each a binary of float64, with the shapes of `shapes` (a vector's own length where it has none)."
  @spec write!(Path.t(), %{String.t() => binary}, %{String.t() => [pos_integer]}) :: :ok
  def write!(path, vectors, shapes \\ %{}) do
    {entries, _} =
      vectors
      |> Enum.sort()
      |> Enum.map_reduce(0, fn {name, data}, offset ->
        finish = offset + byte_size(data)
        shape = shapes[name] || [div(byte_size(data), 8)]

        {{name, %{"dtype" => "F64", "shape" => shape, "data_offsets" => [offset, finish]}},
         finish}
      end)

    header = entries |> Map.new() |> Files.json()
    padded = header <> String.duplicate(" ", rem(8 - rem(byte_size(header), 8), 8))
    body = for {_, data} <- Enum.sort(vectors), do: data
    File.write!(path, [<<byte_size(padded)::little-64>>, padded | body])
  end

  @doc "The vectors of a file by name, as binaries; `:error` for a file that has none of this kind."
  @spec read(Path.t()) :: {:ok, %{String.t() => binary}} | :error
  def read(path) do
    with {:ok, <<size::little-64, header::binary-size(size), body::binary>>} <- File.read(path),
         {:ok, entries} when is_map(entries) <- Files.from_json(header) do
      {:ok,
       for(
         {name, entry} <- entries,
         name != "__metadata__",
         into: %{},
         do: {name, vector!(entry, body)}
       )}
    else
      _ -> :error
    end
  catch
    :not_a_vector -> :error
  end

  defp vector!(%{"dtype" => "F64", "data_offsets" => [from, to]}, body)
       when is_integer(from) and is_integer(to) and 0 <= from and from <= to and
              to <= byte_size(body) and
              rem(to - from, 8) == 0,
       do: binary_part(body, from, to - from)

  defp vector!(_, _), do: throw(:not_a_vector)
end
