# For tests/contract/test_elixir_codec.py: reads (message name, bytes) pairs from the file that the first argument names
# and writes, for each, what this codec makes of them into the file that the second names.
#
#   in   length::32 name, length::32 bytes
#   out  0 or 1 (malformed), length::32 bytes encoded again, length::32 findings, a line each: path or "unknown PATH"
defmodule Reencode do
  alias Crucible.{Constraints, Error, Proto}

  def run(<<>>), do: []

  def run(<<n::32, name::binary-size(n), m::32, data::binary-size(m), rest::binary>>),
    do: [answer(name, data) | run(rest)]

  defp answer(name, data) do
    case Proto.decode(name, data) do
      {:error, :malformed} -> <<1>>
      {:ok, message} -> [0, framed(Proto.encode(name, message)), framed(findings(name, message))]
    end
  end

  defp findings(name, message) do
    paths =
      with {:error, %Error{} = error} <- Constraints.check(name, message),
           do: Enum.map(error.fields, &elem(&1, 0)),
           else: (:ok -> [])

    unknown =
      with {:error, error} <- Constraints.check_unknown(name, message),
           do: ["unknown #{error.metadata["field"]}"],
           else: (:ok -> [])

    Enum.join(paths ++ unknown, "\n")
  end

  defp framed(data), do: [<<byte_size(data)::32>>, data]
end

[input, output] = System.argv()
File.write!(output, input |> File.read!() |> Reencode.run())
