defmodule Crucible.Training do
  @moduledoc "TrainingService: each function is the RPC of its name."

  alias Crucible.{
    Checkpoints,
    Error,
    Files,
    Model,
    Operations,
    Proto,
    Requests,
    Session,
    Sessions,
    Tensor,
    TrainingState
  }

  alias Crucible.Checkpoints.{Folder, Upload}
  alias Crucible.Session.Work

  @service "crucible.port.training.v1.TrainingService"
  @types "crucible.port.training.v1."

  def create_training_session(request, %{config: config}) do
    with :ok <- check_kind(request.lora, config.model),
         {:ok, {_, session_id}} <- open_session(request, config),
         do: answer_session(session_id, config)
  end

  defp check_kind(nil, model),
    do: Model.check(model, "training", "training.full", "set lora to train an adapter")

  defp check_kind(_, model),
    do: Model.check(model, "training", "training.lora", "leave lora out to train every weight")

  defp check_files(%{config: config}),
    do: Model.check(config.model, "training", "training.checkpoint_files", "use its address")

  defp open_session(request, config) do
    options = Map.take(request, [:dtype, :seed, :base_model_name, :lora])

    open = fn ->
      with {:ok, model} <- config.model.open(request.base_model, options) do
        {:ok, %TrainingState{module: config.model, model: model, base_model: request.base_model}}
      end
    end

    digest = Proto.digest(@types <> "CreateTrainingSessionRequest", request)
    Sessions.create(:training, request.request_id, digest, session_options(open, config))
  end

  defp session_options(open, config) do
    [
      open: open,
      order: :ordered,
      service: @service,
      lease_ms: config.lease_seconds * 1_000,
      limits: %{
        max_unfinished: config.max_operations_in_flight,
        max_tokens: config.max_tokens_in_flight
      }
    ]
  end

  def get_training_session(request, %{config: config}),
    do: answer_session(request.session_id, config)

  defp answer_session(session_id, config) do
    with {:ok, state, next} <- Session.look({:training, session_id}) do
      session =
        Map.merge(state.module.describe(state.model), %{
          session_id: session_id,
          base_model: state.base_model,
          optim_steps: state.optim_steps,
          weights_version: state.weights_version,
          next_sequence: next,
          lease: %{seconds: config.lease_seconds, nanos: 0}
        })

      {:ok, %{session: session}}
    end
  end

  def forward(request, context) do
    submit_pass(request, context, "ForwardRequest", fn data ->
      fn state ->
        {loss, logprobs} = TrainingState.forward(state, data)
        {:ok, forward_result(loss, logprobs, data), state}
      end
    end)
  end

  def forward_backward(request, context) do
    submit_pass(request, context, "ForwardBackwardRequest", fn data ->
      fn state ->
        {loss, logprobs, state} = TrainingState.forward_backward(state, data)
        {:ok, forward_result(loss, logprobs, data), state}
      end
    end)
  end

  defp submit_pass(request, %{config: config}, type, make) do
    with {:ok, state, _} <- Session.look({:training, request.session_id}) do
      Requests.check_loss!(request.loss_fn)
      data = Requests.data!(request.data, state.module.describe(state.model))
      tokens = Requests.count_tokens(data)

      Requests.check_tokens_in_flight!(
        tokens,
        config.max_tokens_in_flight,
        "data",
        "send it in several calls"
      )

      failed = if type == "ForwardBackwardRequest", do: &TrainingState.invalidate_gradients/2
      submit(request, type, %Work{run: make.(data), failed: failed, tokens: tokens})
    end
  end

  defp forward_result(loss, logprobs, data) do
    outputs = for row <- logprobs, do: %{logprobs: Tensor.floats(row)}

    {:forward,
     %{loss: loss, outputs: outputs, metrics: %{"tokens" => Requests.count_tokens(data) / 1}}}
  end

  def optim_step(request, _) do
    adam = Requests.adam!(request.adam)

    submit(request, "OptimStepRequest", %Work{
      run: fn state ->
        with {:ok, result, state} <- TrainingState.optim_step(state, adam) do
          Crucible.Fault.point("engine.optim_step.after")
          {:ok, {:optim_step, result}, state}
        end
      end
    })
  end

  def save_checkpoint(request, _) do
    ttl = Requests.ttl!(request.ttl)

    submit(request, "SaveCheckpointRequest", %Work{
      run: fn state ->
        Checkpoints.tidily(fn -> Files.storage(fn -> save(state, request, ttl) end) end)
        |> with_state(state)
      end
    })
  end

  defp save(state, request, ttl) do
    partial = Checkpoints.partial!()
    TrainingState.save!(state, partial, request.weights_only)

    with {:ok, result} <- Checkpoints.publish(request.name, partial, ttl),
         do: {:ok, {:checkpoint, result}}
  end

  def load_checkpoint(request, _) do
    submit(request, "LoadCheckpointRequest", %Work{
      run: fn state ->
        # Looked up here: an earlier call in the queue may be the one that saves it.
        Checkpoints.pinned(request.uri, fn path ->
          folder = Folder.verify!(path)

          with {:ok, loaded} <- TrainingState.load(state, folder, request.weights_only),
               do: {:ok, {:checkpoint, Checkpoints.describe(folder)}, loaded}
        end)
        |> with_state(state)
      end
    })
  end

  defp with_state({:error, error}, state), do: {:error, error, state}
  defp with_state({:ok, {:checkpoint, _} = result}, state), do: {:ok, result, state}
  defp with_state(outcome, _), do: outcome

  defp submit(request, type, work) do
    digest = Proto.digest(@types <> type, request)

    with {:ok, operation} <-
           Session.submit({:training, request.session_id}, request.sequence, digest, work),
         do: {:ok, %{operation: Operations.to_message(operation)}}
  end

  def await_operation(request, _) do
    with {:ok, operation} <-
           Session.await(
             {:training, request.session_id},
             request.operation_id,
             Requests.wait_ms(request.wait)
           ),
         do: {:ok, %{operation: Operations.to_message(operation), result: operation.result}}
  end

  def cancel_operation(request, _) do
    with {:ok, operation} <-
           Session.cancel({:training, request.session_id}, request.operation_id),
         do: {:ok, %{operation: Operations.to_message(operation)}}
  end

  def read_checkpoint_file(request, context) do
    with :ok <- check_files(context),
         {:ok, folder} <- Checkpoints.pin(request.uri),
         {:ok, path} <- Checkpoints.find_file(request.uri, request.path) do
      chunks =
        path
        |> Files.chunks!()
        |> Stream.map(fn {offset, data} ->
          %{offset: offset, crc32: :erlang.crc32(data), data: data}
        end)

      # A call that ends before its last chunk ends its process, and the pin with it.
      {:ok, Stream.concat(chunks, Stream.flat_map([folder], &unpinned/1))}
    end
  end

  defp unpinned(folder) do
    Checkpoints.unpin(folder)
    []
  end

  def upload_checkpoint(requests, context) do
    with :ok <- check_files(context), do: Checkpoints.tidily(fn -> receive_upload(requests) end)
  end

  defp receive_upload(requests) do
    case Enum.reduce_while(requests, :header, &upload/2) do
      :header -> raise header_missing()
      {:done, result} -> {:ok, %{checkpoint: result}}
      upload -> with {:ok, result} <- Upload.commit!(upload), do: {:ok, %{checkpoint: result}}
    end
  end

  @spec upload(Proto.message(), :header | Upload.t()) :: {:cont | :halt, term}
  defp upload(%{part: {:header, header}}, :header) do
    case Checkpoints.existing(header) do
      {:ok, result} -> {:halt, {:done, result}}
      :none -> {:cont, Upload.start!(header)}
      {:error, error} -> raise error
    end
  end

  defp upload(_, :header), do: raise(header_missing())
  defp upload(%{part: {:chunk, chunk}}, upload), do: {:cont, Upload.write!(upload, chunk)}
  defp upload(_, _), do: raise(Error.field("chunk", "missing: after the header come chunks only"))

  defp header_missing,
    do: Error.field("header", "missing: the first message of an upload is its header")

  def delete_checkpoint(request, _) do
    with :ok <- Checkpoints.delete(request.uri), do: {:ok, %{}}
  end

  def close_training_session(request, _) do
    Session.close({:training, request.session_id})
    {:ok, %{}}
  end
end
