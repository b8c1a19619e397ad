defmodule Crucible.Requests do
  @moduledoc "Requests into what a model computes on. What can be checked is checked here, before acceptance."

  alias Crucible.{Constraints, Error, Proto, Tensor}

  @targets "target_tokens"
  @weights "weights"
  @max_ttl 100 * 365 * 86_400 * 1_000_000_000

  @doc "Refuses every loss but cross_entropy, and parameters, of which it has none."
  @spec check_loss!(Proto.message()) :: :ok
  def check_loss!(%{name: "cross_entropy", parameters: parameters}) do
    for {name, _} <- Enum.sort(parameters),
        do:
          raise(
            Error.field(
              "loss_fn.parameters[#{Constraints.quoted(name)}]",
              "cross_entropy has no parameters"
            )
          )

    :ok
  end

  def check_loss!(%{name: name}),
    do: raise(Error.field("loss_fn.name", "unknown loss #{inspect(name)}: use cross_entropy"))

  @doc "The data, ids within the vocabulary and exactly cross_entropy's inputs, all of one length each."
  @spec data!([Proto.message()], Crucible.Model.description()) :: [Crucible.Model.datum()]
  def data!(data, model) do
    for {datum, index} <- Enum.with_index(data), do: datum!(datum, "data[#{index}]", model)
  end

  @doc "Tokens of all data."
  @spec count_tokens([Crucible.Model.datum()]) :: non_neg_integer
  def count_tokens(data), do: data |> Enum.map(&length(&1.tokens)) |> Enum.sum()

  defp datum!(datum, path, model) do
    tokens =
      for {chunk, index} <- Enum.with_index(datum.model_input.chunks),
          token <- chunk!(chunk, "#{path}.model_input.chunks[#{index}]", model),
          do: token

    check_length!(tokens, "#{path}.model_input", model)
    inputs = datum.loss_fn_inputs

    for name <- Enum.sort(Enum.uniq([@targets, @weights | Map.keys(inputs)])) do
      problem =
        cond do
          name not in [@targets, @weights] -> "not an input of this loss"
          not is_map_key(inputs, name) -> "missing"
          true -> nil
        end

      if problem,
        do:
          raise(
            Error.field(
              "#{path}.loss_fn_inputs[#{Constraints.quoted(name)}]",
              "#{problem}: cross_entropy takes target_tokens, weights"
            )
          )
    end

    field = "#{path}.loss_fn_inputs['#{@targets}']"

    targets =
      Tensor.vector!(inputs[@targets], field, length(tokens), [:D_TYPE_INT32, :D_TYPE_INT64])

    weights =
      Tensor.vector!(inputs[@weights], "#{path}.loss_fn_inputs['#{@weights}']", length(tokens), [
        :D_TYPE_FLOAT32
      ])

    %{tokens: tokens, targets: check_tokens!(targets, field, model), weights: weights}
  end

  defp chunk!(%{chunk: {:tokens_int32, data}}, path, model) do
    field = "#{path}.tokens_int32"
    data |> Tensor.unpack_tokens!(field) |> check_tokens!(field, model)
  end

  defp chunk!(%{chunk: {:image, _}}, path, _),
    do:
      raise(
        Error.capability_missing(
          "training",
          "training.image_input",
          "#{path}: send token ids only"
        )
      )

  defp chunk!(_, path, _), do: raise(Error.field(path, "has no content: set tokens_int32"))

  @doc "The tokens, at least one, all of them ids of the vocabulary."
  @spec check_tokens!([integer], String.t(), Crucible.Model.description()) :: [
          Crucible.Model.token()
        ]
  def check_tokens!([], field, _),
    do: raise(Error.field(field, "has no tokens: send at least one"))

  def check_tokens!(tokens, field, %{vocab_size: size}) do
    case Enum.find_index(tokens, &(&1 < 0 or &1 >= size)) do
      nil ->
        tokens

      index ->
        raise Error.field(
                "#{field}[#{index}]",
                "is #{Enum.at(tokens, index)}, outside the vocabulary: ids are 0 to #{size - 1}"
              )
    end
  end

  defp check_length!(tokens, field, %{max_sequence_tokens: most}) when length(tokens) > most,
    do:
      raise(
        Error.field(
          field,
          "has #{length(tokens)} tokens, the model takes at most #{most}: cut it"
        )
      )

  defp check_length!(_, _, _), do: :ok

  @doc "Refuses a request that no session could ever have in flight: trying again would not help."
  @spec check_tokens_in_flight!(non_neg_integer, pos_integer, String.t(), String.t()) :: :ok
  def check_tokens_in_flight!(tokens, limit, field, fix) do
    if tokens > limit,
      do:
        raise(
          Error.field(
            field,
            "makes #{tokens} tokens, more than the #{limit} that a session may have: #{fix}"
          )
        ),
      else: :ok
  end

  @doc "One step's parameters, defaults filled in."
  @spec adam!(Proto.message()) :: Crucible.Model.adam()
  def adam!(adam) do
    for {name, value} <- [beta1: adam.beta1, beta2: adam.beta2],
        is_number(value),
        value >= 1.0,
        do: raise(Error.field("adam.#{name}", "is #{value}, must be below 1"))

    if adam.eps == 0.0,
      do:
        raise(
          Error.field(
            "adam.eps",
            "is 0, must be above 0: a weight without gradient would become NaN; use 1e-8"
          )
        )

    %{
      learning_rate: adam.learning_rate,
      beta1: default(adam.beta1, 0.9),
      beta2: default(adam.beta2, 0.95),
      eps: default(adam.eps, 1.0e-8),
      weight_decay: default(adam.weight_decay, 0.0),
      grad_clip_norm: default(adam.grad_clip_norm, 0.0)
    }
  end

  @doc "Nanoseconds that a checkpoint is kept; nil: until it is deleted."
  @spec ttl!(Proto.message() | nil) :: pos_integer | nil
  def ttl!(nil), do: nil

  def ttl!(%{seconds: seconds, nanos: nanos}) do
    ttl = seconds * 1_000_000_000 + nanos

    if ttl <= 0 or ttl > @max_ttl do
      raise Error.field(
              "ttl",
              "is #{ttl / 1.0e9} s, give more than 0 and at most 100 years, or leave it out to keep it"
            )
    end

    ttl
  end

  @doc "How long to wait, in milliseconds: at most 30 s, nothing when it is absent."
  @spec wait_ms(Proto.message() | nil) :: non_neg_integer
  def wait_ms(nil), do: 0

  def wait_ms(%{seconds: seconds, nanos: nanos}),
    do: min(max(seconds * 1_000 + div(nanos, 1_000_000), 0), 30_000)

  @doc "The ids of a prompt that leaves `room` tokens of the longest sequence free."
  @spec prompt!(binary, String.t(), Crucible.Model.description(), non_neg_integer) :: [
          Crucible.Model.token()
        ]
  def prompt!(data, field, model, room \\ 0) do
    tokens = data |> Tensor.unpack_tokens!(field) |> check_tokens!(field, model)
    most = model.max_sequence_tokens - room

    if length(tokens) > most,
      do:
        raise(
          Error.field(
            field,
            "has #{length(tokens)} tokens, the model takes at most #{most} here: cut the prompt"
          )
        ),
      else: tokens
  end

  @doc "How to choose tokens, defaults filled in."
  @spec sampling!(Proto.message(), Crucible.Model.description()) :: Crucible.Model.sampling()
  def sampling!(params, model) do
    if params.stop_tokens != [],
      do: check_tokens!(params.stop_tokens, "params.stop_tokens", model)

    %{
      temperature: default(params.temperature, 1.0),
      top_p: default(params.top_p, 1.0),
      top_k: default(params.top_k, 0),
      seed: default(params.seed, 0),
      max_tokens: params.max_tokens,
      stop_tokens: params.stop_tokens
    }
  end

  defp default(nil, value), do: value
  defp default(value, _), do: value
end
