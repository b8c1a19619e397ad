defmodule Crucible.Files do
  @moduledoc "Files that last: synced to disk, hashed, read in chunks; and JSON that is the same for equal values."

  alias Crucible.Error

  @chunk 256 * 1024

  @doc "Most bytes of a chunk on the wire."
  def chunk_bytes, do: @chunk

  @doc "Runs a function; what the system says of the work folder becomes an error that names the fix."
  @spec storage((() -> value)) :: value when value: term
  def storage(function) do
    function.()
  rescue
    error in [File.Error, File.RenameError] ->
      reraise Error.new(
                :resource_exhausted,
                "STORAGE_FAILED",
                "the adapter's work folder cannot be used: #{:file.format_error(error.reason)}: free space or fix its " <>
                  "permissions"
              ),
              __STACKTRACE__
  end

  @doc "Makes a file durable, or the entries of a folder."
  @spec sync!(Path.t()) :: :ok
  def sync!(path) do
    modes = if File.dir?(path), do: [:read, :raw, :directory], else: [:read, :raw]

    with {:ok, file} <- :file.open(path, modes) do
      result = :file.sync(file)
      :file.close(file)
      result
    end
    |> case do
      :ok -> :ok
      {:error, reason} -> raise File.Error, reason: reason, action: "sync", path: path
    end
  end

  @doc "Replaces a file as a whole."
  @spec replace!(Path.t(), iodata) :: :ok
  def replace!(path, content) do
    temporary = "#{path}.#{Base.encode16(:crypto.strong_rand_bytes(4))}"
    File.write!(temporary, content)
    sync!(temporary)
    File.rename!(temporary, path)
    sync!(Path.dirname(path))
  end

  @doc "The SHA-256 of a file, 64 hex digits."
  @spec sha256!(Path.t()) :: String.t()
  def sha256!(path) do
    path
    |> chunks!()
    |> Enum.reduce(:crypto.hash_init(:sha256), fn {_, data}, hash ->
      :crypto.hash_update(hash, data)
    end)
    |> :crypto.hash_final()
    |> Base.encode16(case: :lower)
  end

  @doc "A file's bytes as `{offset, chunk}`; an empty file is one empty chunk."
  @spec chunks!(Path.t()) :: Enumerable.t()
  def chunks!(path) do
    Stream.resource(
      fn -> {File.open!(path, [:read, :raw, :binary]), 0} end,
      fn {file, offset} ->
        case :file.read(file, @chunk) do
          {:ok, data} -> {[{offset, data}], {file, offset + byte_size(data)}}
          :eof when offset == 0 -> {[{0, ""}], {file, :sent}}
          :eof -> {:halt, {file, offset}}
          {:error, reason} -> raise File.Error, reason: reason, action: "read", path: path
        end
      end,
      fn {file, _} -> :file.close(file) end
    )
  end

  @doc "JSON with sorted keys and no spaces."
  @spec json(term) :: binary
  def json(value), do: value |> sorted() |> :jsx.encode()

  @doc "The value of JSON, objects as maps."
  @spec from_json(binary) :: {:ok, term} | :error
  def from_json(data) do
    {:ok, :jsx.decode(data, [:return_maps])}
  rescue
    _ -> :error
  end

  defp sorted(map) when map == %{}, do: [{}]

  defp sorted(map) when is_map(map),
    do: map |> Enum.sort() |> Enum.map(fn {k, v} -> {k, sorted(v)} end)

  defp sorted(list) when is_list(list), do: Enum.map(list, &sorted/1)
  defp sorted(value), do: value
end
