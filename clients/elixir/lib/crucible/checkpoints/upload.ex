defmodule Crucible.Checkpoints.Upload do
  @moduledoc "A checkpoint that comes piece by piece: hashes checked, published as a whole or not at all."

  alias Crucible.{Checkpoints, Error, Files, Proto}
  alias Crucible.Checkpoints.Folder

  @enforce_keys [:name, :files, :partial]
  defstruct [:name, :files, :partial, :file, :hash, index: 0, size: 0]

  @type t :: %__MODULE__{}

  @doc "Begins with the header. Raises FIELD_INVALID, CHECKPOINT_EXISTS."
  @spec start!(Proto.message()) :: t
  def start!(header) do
    paths = Enum.map(header.files, & &1.path)

    for {path, index} <- Enum.with_index(paths),
        String.contains?(path, "/") or path in Enum.take(paths, index),
        do:
          raise(
            Error.field(
              "header.files[#{index}].path",
              "#{inspect(path)}: paths are plain names, each once"
            )
          )

    manifest = Folder.manifest()

    cond do
      manifest not in paths ->
        raise Error.field(
                "header.files",
                "without #{manifest}: this adapter reads only checkpoints that it has written"
              )

      List.last(paths) != manifest ->
        raise Error.field(
                "header.files[#{length(paths) - 1}].path",
                "is #{inspect(List.last(paths))}: the last file is #{manifest}"
              )

      true ->
        with {:error, error} <- Checkpoints.check_name(header.name), do: raise(error)

        open!(%__MODULE__{name: header.name, files: header.files, partial: Checkpoints.partial!()})
    end
  end

  @doc "Takes the next bytes. Raises FIELD_INVALID, CHUNK_CORRUPT, CHECKPOINT_CORRUPT."
  @spec write!(t, Proto.message()) :: t
  def write!(upload, %{file_index: index})
      when index < upload.index or index >= length(upload.files),
      do:
        raise(
          Error.field("chunk.file_index", "is #{index} while file #{upload.index} is being sent")
        )

  def write!(upload, %{file_index: index} = chunk) when index > upload.index,
    do: upload |> next!() |> write!(chunk)

  def write!(upload, %{data: data} = chunk) do
    declared = Enum.at(upload.files, upload.index)
    check_crc!(data, chunk.crc32, "#{declared.path} at #{chunk.offset}")

    cond do
      chunk.offset != upload.size ->
        raise Error.field(
                "chunk.offset",
                "is #{chunk.offset}, the next byte of #{declared.path} is #{upload.size}"
              )

      upload.size + byte_size(data) > declared.size_bytes ->
        raise Error.field(
                "chunk.data",
                "goes past the #{declared.size_bytes} bytes of #{declared.path}"
              )

      true ->
        Files.storage(fn -> write_bytes!(upload, data) end)
    end
  end

  @doc "Checks the last files and the manifest, and publishes."
  @spec commit!(t) :: {:ok, Proto.message()} | {:error, Error.t()}
  def commit!(%{index: index, files: files} = upload) when index < length(files),
    do: upload |> next!() |> commit!()

  def commit!(upload) do
    listed = Folder.listing(Folder.read!(upload.partial).files)
    sent = upload.files |> Enum.drop(-1) |> Folder.listing()

    if listed != sent,
      do:
        raise(
          Folder.corrupt(
            upload.name,
            Folder.manifest(),
            "lists other files than the upload's header"
          )
        )

    Files.storage(fn -> Folder.sync!(upload.partial) end)
    Checkpoints.publish(upload.name, upload.partial, nil)
  end

  defp open!(%{index: index, files: files} = upload) when index == length(files),
    do: %{upload | file: nil}

  defp open!(upload) do
    path = Path.join(upload.partial, Enum.at(upload.files, upload.index).path)
    file = Files.storage(fn -> File.open!(path, [:write, :raw, :binary]) end)
    %{upload | file: file, size: 0, hash: :crypto.hash_init(:sha256)}
  end

  defp next!(upload) do
    :ok = :file.close(upload.file)
    declared = Enum.at(upload.files, upload.index)
    actual = upload.hash |> :crypto.hash_final() |> Base.encode16(case: :lower)

    if {upload.size, actual} != {declared.size_bytes, declared.sha256} do
      problem =
        "came as #{upload.size} bytes with SHA-256 #{actual}, expected #{declared.size_bytes} with #{declared.sha256}"

      raise Folder.corrupt(upload.name, declared.path, problem, declared.sha256, actual)
    end

    open!(%{upload | index: upload.index + 1})
  end

  defp write_bytes!(upload, data) do
    case :file.write(upload.file, data) do
      :ok ->
        %{
          upload
          | size: upload.size + byte_size(data),
            hash: :crypto.hash_update(upload.hash, data)
        }

      {:error, reason} ->
        raise File.Error, reason: reason, action: "write", path: upload.partial
    end
  end

  defp check_crc!(data, expected, what) do
    actual = :erlang.crc32(data)

    if actual != expected do
      [told, found] =
        for crc <- [expected, actual],
            do: crc |> Integer.to_string(16) |> String.pad_leading(8, "0")

      raise Error.new(
              :data_loss,
              "CHUNK_CORRUPT",
              "#{what}: CRC-32 is #{found}, the sender said #{told}: send it again",
              metadata: %{expected: told, actual: found}
            )
    end
  end
end
