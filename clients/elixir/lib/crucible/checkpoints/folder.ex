defmodule Crucible.Checkpoints.Folder do
  @moduledoc """
  A checkpoint on disk: the model's files, and `crucible_manifest.json`, written last, with the size and SHA-256 of each.
  The same state gives the same bytes.
  """

  alias Crucible.{Error, Files}

  @manifest "crucible_manifest.json"
  @format 1

  @enforce_keys [:path, :files, :manifest_sha256, :optim_steps, :weights_version]
  defstruct [
    :path,
    :files,
    :manifest_sha256,
    :optim_steps,
    :weights_version,
    :dtype,
    base_model: ""
  ]

  @type file :: %{path: String.t(), size_bytes: non_neg_integer, sha256: String.t()}
  @type t :: %__MODULE__{
          path: Path.t(),
          files: [file],
          manifest_sha256: String.t(),
          optim_steps: non_neg_integer,
          weights_version: non_neg_integer
        }

  @doc "The manifest's name."
  def manifest, do: @manifest

  @doc "Writes the manifest of a folder that is otherwise complete, and makes all of it durable."
  @spec seal!(Path.t(), %{dtype: String.t(), optim_steps: integer, weights_version: integer}) ::
          :ok
  def seal!(path, facts) do
    files =
      for name <- File.ls!(path), into: %{} do
        file = Path.join(path, name)
        {name, %{"sha256" => Files.sha256!(file), "size_bytes" => File.stat!(file).size}}
      end

    manifest = %{
      "base_model" => "",
      "dtype" => facts.dtype,
      "engine_version" => "crucible-elixir #{Crucible.Adapter.version()}",
      "files" => files,
      "format" => @format,
      "optim_steps" => facts.optim_steps,
      "weights_version" => facts.weights_version
    }

    File.write!(Path.join(path, @manifest), Files.json(manifest))
    sync!(path)
  end

  @doc "Makes all of a folder durable."
  @spec sync!(Path.t()) :: :ok
  def sync!(path) do
    for name <- File.ls!(path), do: Files.sync!(Path.join(path, name))
    Files.sync!(path)
  end

  @doc "What the manifest says. Raises DATA_LOSS CHECKPOINT_CORRUPT for one that cannot be read."
  @spec read!(Path.t()) :: t
  def read!(path) do
    with {:ok, data} <- File.read(Path.join(path, @manifest)),
         {:ok, manifest} <- Files.from_json(data),
         %{
           "format" => @format,
           "files" => files,
           "optim_steps" => steps,
           "weights_version" => version
         }
         when is_map(files) and is_integer(steps) and is_integer(version) <- manifest,
         true <- Enum.all?(files, &file?/1) do
      %__MODULE__{
        path: path,
        files:
          for(
            {name, file} <- Enum.sort(files),
            do: %{path: name, size_bytes: file["size_bytes"], sha256: file["sha256"]}
          ),
        manifest_sha256: Base.encode16(:crypto.hash(:sha256, data), case: :lower),
        optim_steps: steps,
        weights_version: version,
        dtype: manifest["dtype"],
        base_model: if(is_binary(manifest["base_model"]), do: manifest["base_model"], else: "")
      }
    else
      _ -> raise corrupt(path, @manifest, "cannot be read as a manifest of format #{@format}")
    end
  end

  defp file?({_, %{"size_bytes" => size, "sha256" => sha256}}),
    do: is_integer(size) and is_binary(sha256)

  defp file?(_), do: false

  @doc "The same, after every file's hash was checked. Raises CHECKPOINT_CORRUPT naming file and hashes."
  @spec verify!(Path.t()) :: t
  def verify!(path) do
    folder = read!(path)

    for file <- folder.files do
      full = Path.join(path, file.path)
      unless File.regular?(full), do: raise(corrupt(path, file.path, "is missing", file.sha256))
      actual = Files.sha256!(full)

      if actual != file.sha256,
        do:
          raise(
            corrupt(
              path,
              file.path,
              "has SHA-256 #{actual}, expected #{file.sha256}",
              file.sha256,
              actual
            )
          )
    end

    folder
  end

  @doc "What makes two folders the same: paths, sizes and hashes, sorted."
  @spec listing([file]) :: [tuple]
  def listing(files), do: files |> Enum.map(&{&1.path, &1.size_bytes, &1.sha256}) |> Enum.sort()

  @doc "The DATA_LOSS of a file that is not what it should be."
  @spec corrupt(Path.t(), String.t(), String.t(), String.t(), String.t()) :: Error.t()
  def corrupt(path, file, problem, expected \\ "", actual \\ "") do
    Error.new(
      :data_loss,
      "CHECKPOINT_CORRUPT",
      "checkpoint #{Path.basename(path)}: #{file} #{problem}",
      metadata: %{file: file, expected: expected, actual: actual}
    )
  end

  @doc "The FAILED_PRECONDITION of a checkpoint that belongs to something else."
  @spec mismatch(Path.t(), String.t()) :: Error.t()
  def mismatch(path, problem),
    do:
      Error.new(
        :failed_precondition,
        "CHECKPOINT_MISMATCH",
        "checkpoint #{Path.basename(path)} #{problem}"
      )
end
