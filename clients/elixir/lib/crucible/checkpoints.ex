defmodule Crucible.Checkpoints do
  @moduledoc """
  The adapter's checkpoints by name and address, in one folder: a name's slashes are folders.

  Whoever makes one writes into a `partial!/0` folder and has it `publish/3`ed: it appears as a whole or not at all. A
  pin keeps one from being deleted for as long as the process that holds it lives. When one is to be deleted stands in a
  file beside them, so that it outlives this process.
  """

  use GenServer

  alias Crucible.{Error, Files, Operations, Proto}
  alias Crucible.Checkpoints.Folder

  @scheme "crucible-elixir:"
  @name "[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*"
  @expiry ".expiry.json"
  @partial ".partial-"
  @expiry_ms 15_000

  @doc "`root`: the folder; made when it is missing."
  def start_link(root), do: GenServer.start_link(__MODULE__, root, name: __MODULE__)

  @doc "A folder of the calling process; it vanishes with the process unless it is published."
  @spec partial!() :: Path.t()
  def partial! do
    with {:error, error} <- call(:partial), do: raise(error)
  end

  @doc "Runs a function; the partial folders that it has left are gone when it ends."
  @spec tidily((() -> value)) :: value when value: term
  def tidily(function) do
    function.()
  after
    call(:discard)
  end

  @doc """
  Gives a sealed partial folder its name, to be deleted after `ttl` nanoseconds; nil: never by itself. Content that is
  there already under the name stays, for the longer of both times.

  Errors: ALREADY_EXISTS CHECKPOINT_EXISTS.
  """
  @spec publish(String.t(), Path.t(), pos_integer | nil) ::
          {:ok, Proto.message()} | {:error, Error.t()}
  def publish(name, partial, ttl), do: call({:publish, name, partial, ttl})

  @doc "Refuses a name under which nothing can be published: CHECKPOINT_EXISTS."
  @spec check_name(String.t()) :: :ok | {:error, Error.t()}
  def check_name(name), do: call({:check_name, name})

  @doc "The checkpoint that an upload's header describes, if it is there; it then stays for good."
  @spec existing(Proto.message()) :: {:ok, Proto.message()} | :none | {:error, Error.t()}
  def existing(header), do: call({:existing, header})

  @doc "Pins a checkpoint for the calling process. Errors: CHECKPOINT_NOT_FOUND."
  @spec pin(String.t(), String.t()) :: {:ok, Path.t()} | {:error, Error.t()}
  def pin(uri, field \\ "uri"), do: call({:pin, uri, field})

  @doc "Takes one pin of the calling process back."
  @spec unpin(Path.t()) :: :ok
  def unpin(folder), do: call({:unpin, folder})

  @doc "Runs a function on a checkpoint's folder, pinned meanwhile. Errors: CHECKPOINT_NOT_FOUND."
  @spec pinned(String.t(), (Path.t() -> value)) :: value | {:error, Error.t()} when value: term
  def pinned(uri, function) do
    with {:ok, folder} <- pin(uri) do
      try do
        function.(folder)
      after
        unpin(folder)
      end
    end
  end

  @doc "The path of one file. Errors: CHECKPOINT_NOT_FOUND, CHECKPOINT_FILE_NOT_FOUND."
  @spec find_file(String.t(), String.t()) :: {:ok, Path.t()} | {:error, Error.t()}
  def find_file(uri, path), do: call({:find_file, uri, path})

  @doc "Deletes a checkpoint; absent is OK. Errors: CHECKPOINT_IN_USE."
  @spec delete(String.t()) :: :ok | {:error, Error.t()}
  def delete(uri), do: call({:delete, uri})

  @doc "A pinned checkpoint as the wire shows it."
  @spec describe(Folder.t()) :: Proto.message()
  def describe(folder), do: call({:describe, folder})

  defp call(request), do: GenServer.call(__MODULE__, request, :infinity)

  # The process

  @impl true
  def init(root) do
    File.mkdir_p!(root)

    for leftover <- Path.wildcard("#{root}/#{@partial}*", match_dot: true),
        do: File.rm_rf!(leftover)

    state = %{root: root, pins: %{}, partials: %{}, expiry: read_expiry(root)}
    {:ok, delete_expired(state), {:continue, :expiry}}
  end

  @impl true
  def handle_continue(:expiry, state) do
    Process.send_after(self(), :expiry, @expiry_ms)
    {:noreply, state}
  end

  @impl true
  def handle_call(request, {pid, _}, state) do
    Files.storage(fn -> answer(request, pid, state) end)
  rescue
    error in Error -> {:reply, {:error, error}, state}
  end

  @impl true
  def handle_info(:expiry, state), do: {:noreply, delete_expired(state), {:continue, :expiry}}

  def handle_info({:DOWN, monitor, :process, _, _}, state) do
    {partial, partials} = Map.pop(state.partials, monitor)
    with {_, path} <- partial, do: File.rm_rf(path)
    {:noreply, %{state | partials: partials, pins: Map.delete(state.pins, monitor)}}
  end

  def handle_info(_, state), do: {:noreply, state}

  defp answer(:partial, pid, state) do
    path = Path.join(state.root, @partial <> Base.encode16(:crypto.strong_rand_bytes(8)))
    File.mkdir!(path)
    {:reply, path, put_in(state.partials[Process.monitor(pid)], {pid, path})}
  end

  defp answer(:discard, pid, state) do
    {mine, others} = Enum.split_with(state.partials, fn {_, {owner, _}} -> owner == pid end)

    for {monitor, {_, path}} <- mine do
      Process.demonitor(monitor, [:flush])
      File.rm_rf(path)
    end

    {:reply, :ok, %{state | partials: Map.new(others)}}
  end

  defp answer({:publish, name, partial, ttl}, _, state) do
    folder = folder!(name, state)

    cond do
      not File.exists?(folder) ->
        # Before it is there: a crash must not leave one that stays for ever, or one that expires unasked.
        state = set_expiry(state, name, ttl && System.os_time(:nanosecond) + ttl)
        File.mkdir_p!(Path.dirname(folder))
        File.rename!(partial, folder)
        Files.sync!(Path.dirname(folder))
        {:reply, {:ok, result(Folder.read!(folder), state)}, state}

      Folder.listing(Folder.read!(folder).files) == Folder.listing(Folder.read!(partial).files) ->
        state = keep(state, name, ttl)
        {:reply, {:ok, result(Folder.read!(folder), state)}, state}

      true ->
        {:reply, {:error, exists(name, "exists with other content: save under another name")},
         state}
    end
  end

  defp answer({:check_name, name}, _, state) do
    folder!(name, state)
    {:reply, :ok, state}
  end

  defp answer({:existing, header}, _, state) do
    folder = folder!(header.name, state)
    manifest = Enum.find(header.files, &(&1.path == Folder.manifest()))

    if manifest != nil and File.exists?(folder) and
         Folder.read!(folder).manifest_sha256 == manifest.sha256 do
      state = keep(state, header.name, nil)
      {:reply, {:ok, result(Folder.read!(folder), state)}, state}
    else
      {:reply, :none, state}
    end
  end

  defp answer({:pin, uri, field}, pid, state) do
    folder = find!(uri, field, state)
    {:reply, {:ok, folder}, put_in(state.pins[Process.monitor(pid)], {pid, folder})}
  end

  defp answer({:unpin, folder}, pid, state) do
    case Enum.find(state.pins, fn {_, pin} -> pin == {pid, folder} end) do
      {monitor, _} ->
        Process.demonitor(monitor, [:flush])
        {:reply, :ok, %{state | pins: Map.delete(state.pins, monitor)}}

      nil ->
        {:reply, :ok, state}
    end
  end

  defp answer({:find_file, uri, path}, _, state) do
    folder = find!(uri, "uri", state)
    files = Enum.map(Folder.read!(folder).files, & &1.path) ++ [Folder.manifest()]

    if path in files do
      {:reply, {:ok, Path.join(folder, path)}, state}
    else
      {:reply,
       {:error,
        Error.new(
          :not_found,
          "CHECKPOINT_FILE_NOT_FOUND",
          "path: checkpoint #{uri} has no file #{inspect(path)}, it has #{Enum.join(files, ", ")}",
          metadata: %{uri: uri, path: path}
        )}, state}
    end
  end

  defp answer({:delete, uri}, _, state) do
    with {:ok, folder} <- find(uri, state), :ok <- check_unused(folder, uri, state) do
      {:reply, :ok, remove(state, folder)}
    else
      :none -> {:reply, :ok, state}
      {:error, error} -> {:reply, {:error, error}, state}
    end
  end

  defp answer({:describe, folder}, _, state), do: {:reply, result(folder, state), state}

  defp check_unused(folder, uri, state) do
    # The end of a process may not have been told here yet.
    case Enum.count(state.pins, fn {_, {pid, pinned}} ->
           pinned == folder and Process.alive?(pid)
         end) do
      0 ->
        :ok

      users ->
        {:error,
         Error.new(
           :failed_precondition,
           "CHECKPOINT_IN_USE",
           "uri: #{uri} is used by #{users} sampling sessions or calls: end them first",
           metadata: %{uri: uri}
         )}
    end
  end

  # Renamed first, so that a crash leaves no half of a checkpoint under its name.
  defp remove(state, folder) do
    trash = Path.join(state.root, @partial <> Base.encode16(:crypto.strong_rand_bytes(8)))
    File.rename!(folder, trash)
    File.rm_rf!(trash)
    set_expiry(state, Path.relative_to(folder, state.root), nil)
  end

  defp folder!(name, state) do
    folder = Path.join(state.root, name)

    above =
      folder
      |> Path.relative_to(state.root)
      |> Path.split()
      |> Enum.drop(-1)
      |> Enum.scan(&Path.join(&2, &1))
      |> Enum.find(&File.exists?(Path.join([state.root, &1, Folder.manifest()])))

    cond do
      above != nil ->
        raise exists(name, "lies inside the checkpoint #{above}: use another name")

      File.exists?(folder) and not File.exists?(Path.join(folder, Folder.manifest())) ->
        raise exists(name, "is a folder of other checkpoints: use another name")

      true ->
        folder
    end
  end

  defp exists(name, problem) do
    Error.new(:already_exists, "CHECKPOINT_EXISTS", "name: #{inspect(name)} #{problem}",
      metadata: %{name: name}
    )
  end

  defp find(uri, state) do
    with @scheme <> name <- uri,
         true <- Regex.match?(Regex.compile!("\\A#{@name}\\z"), name),
         folder = Path.join(state.root, name),
         true <- File.exists?(Path.join(folder, Folder.manifest())) do
      {:ok, folder}
    else
      _ -> :none
    end
  end

  defp find!(uri, field, state) do
    case find(uri, state) do
      {:ok, folder} ->
        folder

      :none ->
        raise Error.new(
                :not_found,
                "CHECKPOINT_NOT_FOUND",
                "#{field}: this adapter has no checkpoint #{inspect(uri)}: upload it first",
                metadata: %{uri: uri}
              )
    end
  end

  defp result(folder, state) do
    name = Path.relative_to(folder.path, state.root)
    expires = state.expiry[name]

    Proto.new("crucible.port.training.v1.CheckpointResult", %{
      uri: @scheme <> name,
      files: folder.files,
      manifest_sha256: folder.manifest_sha256,
      manifest_path: Folder.manifest(),
      optim_steps: folder.optim_steps,
      weights_version: folder.weights_version,
      expire_time: expires && Operations.timestamp(expires)
    })
  end

  # Expiry: Unix nanoseconds by name

  defp read_expiry(root) do
    with {:ok, data} <- File.read(Path.join(root, @expiry)),
         {:ok, times} when is_map(times) <- Files.from_json(data) do
      for {name, time} <- times,
          is_integer(time),
          File.exists?(Path.join([root, name, Folder.manifest()])),
          into: %{},
          do: {name, time}
    else
      # Keeping too much is the smaller harm.
      _ -> %{}
    end
  end

  defp set_expiry(%{expiry: expiry} = state, name, time) do
    times = if time, do: Map.put(expiry, name, time), else: Map.delete(expiry, name)
    if times != expiry, do: Files.replace!(Path.join(state.root, @expiry), Files.json(times))
    %{state | expiry: times}
  end

  defp keep(state, name, ttl) do
    case state.expiry do
      %{^name => known} ->
        set_expiry(state, name, ttl && max(known, System.os_time(:nanosecond) + ttl))

      _ ->
        state
    end
  end

  defp delete_expired(state) do
    now = System.os_time(:nanosecond)

    Enum.reduce(state.expiry, state, fn {name, time}, state ->
      folder = Path.join(state.root, name)

      if time <= now and check_unused(folder, name, state) == :ok,
        do:
          if(File.exists?(folder), do: remove(state, folder), else: set_expiry(state, name, nil)),
        else: state
    end)
  end
end
