defmodule Crucible.Sampling do
  @moduledoc "SamplingService: each function is the RPC of its name."

  alias Crucible.{
    Checkpoints,
    Error,
    Model,
    Operations,
    Proto,
    Requests,
    Session,
    Sessions,
    Tensor
  }

  alias Crucible.Checkpoints.Folder
  alias Crucible.Session.Work

  @service "crucible.port.sampling.v1.SamplingService"
  @types "crucible.port.sampling.v1."

  def create_sampling_session(request, %{config: config}) do
    check_model!(request)

    with :ok <- check_follows(request.model, config.model), do: create(request, config)
  end

  defp check_follows({:training_session_id, _}, model),
    do: Model.check(model, "sampling", "sampling.follow", "sample from a checkpoint")

  defp check_follows(_, _), do: :ok

  defp create(request, config) do
    digest = Proto.digest(@types <> "CreateSamplingSessionRequest", request)
    # The session's process runs it: a checkpoint stays pinned as long as that lives.
    open = fn -> open(request.model, config) end

    options = [
      open: open,
      order: :unordered,
      service: @service,
      lease_ms: config.lease_seconds * 1_000,
      limits: %{
        max_unfinished: config.max_operations_in_flight,
        max_tokens: config.max_tokens_in_flight
      }
    ]

    with {:ok, {_, session_id}} <-
           Sessions.create(:sampling, request.request_id, digest, options),
         {:ok, model, _} <- weights(session_id, config) do
      described = config.model.describe(model)

      {:ok,
       %{
         session_id: session_id,
         vocab_size: described.vocab_size,
         max_sequence_tokens: described.max_sequence_tokens,
         lease: %{seconds: config.lease_seconds, nanos: 0}
       }}
    end
  end

  defp check_model!(%{model: nil}),
    do:
      raise(
        Error.field("model", "missing: set base_model, checkpoint_uri or training_session_id")
      )

  defp check_model!(%{checkpoint_base_model: name, model: {kind, _}}) when name != "" do
    problem =
      if kind == :checkpoint_uri,
        do: "is set, and checkpoints here are whole models",
        else: "is set without checkpoint_uri"

    raise Error.field("checkpoint_base_model", "#{problem}: leave it out")
  end

  defp check_model!(_), do: :ok

  defp open({:base_model, name}, config) do
    with {:ok, model} <- config.model.open(name, %{}), do: {:ok, {:fixed, model}}
  end

  defp open({:checkpoint_uri, uri}, config) do
    with {:ok, path} <- Checkpoints.pin(uri, "checkpoint_uri"),
         Folder.verify!(path),
         {:ok, model} <- config.model.open_checkpoint(path),
         do: {:ok, {:fixed, model}}
  end

  defp open({:training_session_id, id}, _) do
    with {:ok, _, _} <- Session.look({:training, id}, "training_session_id"),
         do: {:ok, {:follows, id}}
  end

  # What the session samples from now, and its version. Of a training session it is what the last finished step left.
  defp weights(session_id, _) do
    with {:ok, subject, _} <- Session.look({:sampling, session_id}), do: weights(subject)
  end

  defp weights({:fixed, model}), do: {:ok, model, 0}

  defp weights({:follows, id}) do
    with {:ok, state, _} <- Session.look({:training, id}, "training_session_id"),
         do: {:ok, state.model, state.weights_version}
  end

  def sample(request, %{config: config}) do
    with {:ok, prompt, options, tokens} <- parse(request, config) do
      %{prompt_logprobs: scored, num_samples: count} = request

      submit(request, "SampleRequest", tokens, fn model, version ->
        sequences =
          for index <- 0..(count - 1),
              do: config.model |> completed(model, prompt, options, index)

        result = %{sequences: sequences, weights_version: version}

        {:sample,
         if(scored,
           do:
             Map.put(
               result,
               :prompt_logprobs_float32,
               model |> config.model.logprobs(prompt) |> Tensor.pack_floats()
             ),
           else: result
         )}
      end)
    end
  end

  def stream_sample(request, %{config: config}) do
    fix = "use Sample, which answers with whole completions"

    with :ok <- Model.check(config.model, "sampling", "sampling.stream", fix),
         {:ok, prompt, options, _} <- parse(request, config),
         {:ok, model, _} <- weights(request.session_id, config) do
      {:ok,
       Stream.flat_map(0..(request.num_samples - 1), fn index ->
         model
         |> config.model.sample(prompt, options, index)
         |> with_ends(options)
         |> Stream.map(&Map.put(&1, :index, index))
       end)}
    end
  end

  # A message a token; the last one says why it ended.
  defp with_ends(tokens, options) do
    tokens
    |> Stream.concat([:end])
    |> Stream.transform(nil, fn
      :end, nil -> {[%{stop_reason: :STOP_REASON_LENGTH}], nil}
      :end, {token, _} = last -> {[message(last, reason(token, options))], nil}
      each, nil -> {[], each}
      each, last -> {[message(last, :STOP_REASON_UNSPECIFIED)], each}
    end)
  end

  defp message({token, logprob}, reason),
    do: %{
      tokens_int32: Tensor.pack_tokens([token]),
      logprobs_float32: Tensor.pack_floats([logprob]),
      stop_reason: reason
    }

  defp reason(token, options),
    do: if(token in options.stop_tokens, do: :STOP_REASON_STOP, else: :STOP_REASON_LENGTH)

  defp completed(module, model, prompt, options, index) do
    {tokens, logprobs} = model |> module.sample(prompt, options, index) |> Enum.unzip()

    %{
      tokens_int32: Tensor.pack_tokens(tokens),
      logprobs_float32: Tensor.pack_floats(logprobs),
      stop_reason: reason(List.last(tokens), options)
    }
  end

  def compute_logprobs(request, %{config: config}) do
    with {:ok, model, _} <- weights(request.session_id, config) do
      tokens =
        Requests.prompt!(request.tokens_int32, "tokens_int32", config.model.describe(model))

      if length(tokens) < 2,
        do:
          raise(
            Error.field("tokens_int32", "has 1 token, which has no logprob: send at least two")
          )

      submit(request, "ComputeLogprobsRequest", length(tokens), fn model, version ->
        logprobs = model |> config.model.logprobs(tokens) |> Tensor.pack_floats()
        {:logprobs, %{logprobs_float32: logprobs, weights_version: version}}
      end)
    end
  end

  defp parse(request, config) do
    with {:ok, model, _} <- weights(request.session_id, config) do
      described = config.model.describe(model)
      prompt = Requests.prompt!(request.prompt_tokens_int32, "prompt_tokens_int32", described, 1)
      options = Requests.sampling!(request.params, described)
      longest = min(options.max_tokens, described.max_sequence_tokens - length(prompt))
      tokens = length(prompt) + request.num_samples * longest
      fix = "ask for fewer samples or a smaller max_tokens"
      Requests.check_tokens_in_flight!(tokens, config.max_tokens_in_flight, "num_samples", fix)
      {:ok, prompt, options, tokens}
    end
  end

  defp submit(request, type, tokens, compute) do
    digest = Proto.digest(@types <> type, request)

    run = fn subject ->
      with {:ok, model, version} <- weights(subject),
           do: {:ok, compute.(model, version), subject},
           else: ({:error, error} -> {:error, error, subject})
    end

    work = %Work{run: run, stoppable: true, tokens: tokens}

    with {:ok, operation} <-
           Session.submit({:sampling, request.session_id}, request.sequence, digest, work),
         do: {:ok, %{operation: Operations.to_message(operation)}}
  end

  def await_operation(request, _) do
    with {:ok, operation} <-
           Session.await(
             {:sampling, request.session_id},
             request.operation_id,
             Requests.wait_ms(request.wait)
           ),
         do: {:ok, %{operation: Operations.to_message(operation), result: operation.result}}
  end

  def cancel_operation(request, _) do
    with {:ok, operation} <-
           Session.cancel({:sampling, request.session_id}, request.operation_id),
         do: {:ok, %{operation: Operations.to_message(operation)}}
  end

  def close_sampling_session(request, _) do
    Session.close({:sampling, request.session_id})
    {:ok, %{}}
  end
end
