defmodule Crucible.ToyModel do
  @moduledoc """
  A small real language model in float64: the next token's logits are a bias, plus a row of a table that the last token
  chooses (its id modulo 8). Losses, gradients and AdamW steps are exact, and the same everywhere.

  It knows `builtin:tiny-qwen3`, whose vocabulary it has and nothing else, and `toy-N` with N ids. First weights are
  hashes of the model's name.
  """

  @behaviour Crucible.Model

  alias Crucible.{Error, Files, Safetensors}
  alias Crucible.Checkpoints.Folder
  alias Crucible.ToyModel.{AdamW, Sampler, Vector}

  @rows 8
  @known %{"builtin:tiny-qwen3" => 2048}
  @longest 2048
  @max_vocabulary 65_536
  @spread 0.2
  @weights "model.safetensors"
  @optimizer "optimizer.safetensors"
  @config "config.json"
  @type_name "crucible-toy"

  # The weights are one vector: the bias, then the rows of the table. Moments and gradients alike.
  @enforce_keys [:vocabulary, :weights]
  defstruct [:vocabulary, :weights, :gradients, :first, :second, step: 0]

  @impl true
  def capabilities do
    %{
      "training" => ["training.checkpoint_files", "training.full"],
      "sampling" => ["sampling.follow", "sampling.stream"]
    }
  end

  @impl true
  def open(name, options) do
    case {vocabulary(name), Map.get(options, :dtype, "")} do
      {nil, _} ->
        {:error,
         Error.new(
           :not_found,
           "MODEL_NOT_FOUND",
           "base_model: #{inspect(name)} is not known here: use builtin:tiny-qwen3, or toy-N for N ids",
           metadata: %{field: "base_model"}
         )}

      {vocabulary, dtype} when dtype in ["", "auto", "float64"] ->
        {:ok,
         %__MODULE__{
           vocabulary: vocabulary,
           weights: first_weights(name, vocabulary * (@rows + 1))
         }}

      {_, dtype} ->
        {:error, Error.field("dtype", "is #{dtype}, this model is float64: leave it out")}
    end
  end

  defp vocabulary("toy-" <> size) do
    case Integer.parse(size) do
      {vocabulary, ""} when vocabulary in 2..@max_vocabulary -> vocabulary
      _ -> nil
    end
  end

  defp vocabulary(name), do: @known[name]

  defp first_weights(name, count) do
    bytes =
      for block <- 0..div(count * 8 - 1, 32),
          into: <<>>,
          do: :crypto.hash(:sha256, "#{name}:#{block}")

    for <<bits::53, _::11 <- binary_part(bytes, 0, count * 8)>>,
      into: <<>>,
      do: <<(bits / 9_007_199_254_740_992 - 0.5) * @spread::float-little-64>>
  end

  @impl true
  def open_checkpoint(folder) do
    with {:ok, vocabulary} <- read_config(folder),
         {:ok, %{"weights" => weights}} <- Safetensors.read(Path.join(folder, @weights)),
         true <- Vector.size(weights) == vocabulary * (@rows + 1) do
      {:ok, %__MODULE__{vocabulary: vocabulary, weights: weights}}
    else
      _ -> {:error, Folder.mismatch(folder, "holds no model of this adapter")}
    end
  end

  defp read_config(folder) do
    with {:ok, data} <- File.read(Path.join(folder, @config)),
         {:ok, %{"model_type" => @type_name, "rows" => @rows, "vocab_size" => vocabulary}}
         when is_integer(vocabulary) <- Files.from_json(data),
         do: {:ok, vocabulary},
         else: (_ -> :error)
  end

  @impl true
  def describe(model) do
    %{
      vocab_size: model.vocabulary,
      max_sequence_tokens: @longest,
      trainable_parameters: Vector.size(model.weights),
      dtype: "float64",
      device: "cpu"
    }
  end

  @impl true
  def forward(model, data) do
    {loss, logprobs, _} = run(model, data)
    {loss, logprobs}
  end

  @impl true
  def forward_backward(model, data) do
    {loss, logprobs, rows} = run(model, data)
    gradients = gradients(model, data, rows)
    gradients = if model.gradients, do: Vector.add(model.gradients, gradients), else: gradients
    {loss, logprobs, %{model | gradients: gradients}}
  end

  # The loss, the logprobs by datum, and the log-softmax of every row that the data's tokens choose, as a tuple.
  defp run(model, data) do
    rows =
      for row <- data |> Enum.flat_map(& &1.tokens) |> Enum.map(&rem(&1, @rows)) |> Enum.uniq(),
          into: %{},
          do: {row, model |> row(row) |> List.to_tuple()}

    logprobs =
      for datum <- data,
          do:
            Enum.zip_with(datum.tokens, datum.targets, fn token, target ->
              elem(rows[rem(token, @rows)], target)
            end)

    loss =
      data
      |> Enum.zip(logprobs)
      |> Enum.reduce(0.0, fn {datum, logprobs}, loss ->
        datum.weights
        |> Enum.zip(logprobs)
        |> Enum.reduce(loss, fn {weight, logprob}, loss -> loss - weight * logprob end)
      end)

    {loss, logprobs, rows}
  end

  # d loss / d logits of a row is (sum of the weights) x softmax - (weights at their targets); the bias gets the sum.
  defp gradients(model, data, rows) do
    chosen =
      for datum <- data,
          {token, target, weight} <- Enum.zip([datum.tokens, datum.targets, datum.weights]),
          weight != 0.0,
          reduce: %{} do
        chosen ->
          Map.update(chosen, rem(token, @rows), %{target => weight}, fn at ->
            Map.update(at, target, weight, &(&1 + weight))
          end)
      end

    zeros = Vector.zeros(model.vocabulary)

    table =
      for row <- 0..(@rows - 1) do
        case chosen do
          %{^row => at} -> row_gradient(rows[row], at, model.vocabulary)
          _ -> zeros
        end
      end

    IO.iodata_to_binary([
      Enum.reduce(table, zeros, &if(&1 == zeros, do: &2, else: Vector.add(&2, &1))) | table
    ])
  end

  defp row_gradient(logprobs, at, vocabulary) do
    # In the order of the ids: a sum must not depend on how a map is laid out.
    total = at |> Enum.sort() |> Enum.reduce(0.0, fn {_, weight}, sum -> sum + weight end)

    for id <- 0..(vocabulary - 1), into: <<>> do
      gradient = total * :math.exp(elem(logprobs, id)) - Map.get(at, id, 0.0)
      <<gradient::float-little-64>>
    end
  end

  @impl true
  def zero_gradients(model), do: %{model | gradients: nil}

  @impl true
  def optim_step(model, adam) do
    norm = :math.sqrt(Vector.sum_squares(model.gradients))

    scale =
      if adam.grad_clip_norm > 0, do: min(1.0, adam.grad_clip_norm / (norm + 1.0e-6)), else: 1.0

    zeros = Vector.zeros(Vector.size(model.weights))
    before = {model.weights, model.first || zeros, model.second || zeros}
    step = model.step + 1
    {{weights, first, second}, squares} = AdamW.step(before, model.gradients, step, scale, adam)

    {:ok, norm, :math.sqrt(squares),
     %{model | weights: weights, first: first, second: second, step: step}}
  end

  @impl true
  def save(model, folder, weights_only) do
    config = %{"model_type" => @type_name, "rows" => @rows, "vocab_size" => model.vocabulary}
    File.write!(Path.join(folder, @config), Files.json(config))

    Safetensors.write!(Path.join(folder, @weights), %{"weights" => model.weights}, %{
      "weights" => [@rows + 1, model.vocabulary]
    })

    unless weights_only do
      zeros = Vector.zeros(Vector.size(model.weights))

      state = %{
        "first" => model.first || zeros,
        "second" => model.second || zeros,
        "step" => Vector.from_list([model.step])
      }

      Safetensors.write!(Path.join(folder, @optimizer), state)
    end

    :ok
  end

  @impl true
  def load(model, folder, weights_only) do
    with {:ok, loaded} <- open_checkpoint(folder),
         :ok <- same_vocabulary(model, loaded, folder),
         {:ok, optimizer} <- read_optimizer(folder, Vector.size(model.weights), weights_only),
         do: {:ok, Map.merge(%{model | weights: loaded.weights, gradients: nil}, optimizer)}
  end

  defp same_vocabulary(%{vocabulary: same}, %{vocabulary: same}, _), do: :ok

  defp same_vocabulary(ours, theirs, folder),
    do:
      {:error,
       Folder.mismatch(
         folder,
         "has #{theirs.vocabulary} ids, the session's model #{ours.vocabulary}: open another session"
       )}

  defp read_optimizer(_, _, true), do: {:ok, %{first: nil, second: nil, step: 0}}

  defp read_optimizer(folder, size, false) do
    path = Path.join(folder, @optimizer)

    with true <- File.exists?(path) || "has no optimizer state: load it with weights_only",
         {:ok, %{"first" => first, "second" => second, "step" => <<step::float-little-64>>}}
         when byte_size(first) == 8 * size and byte_size(second) == 8 * size <-
           Safetensors.read(path) do
      {:ok, %{first: first, second: second, step: trunc(step)}}
    else
      problem when is_binary(problem) ->
        {:error, Folder.mismatch(folder, problem)}

      _ ->
        {:error,
         Folder.mismatch(
           folder,
           "has an optimizer state of another model: load it with weights_only"
         )}
    end
  end

  @impl true
  def sample(model, prompt, options, index) do
    length = min(options.max_tokens, @longest - length(prompt))

    Stream.unfold({List.last(prompt), 0, %{}}, fn
      :stopped ->
        nil

      {_, ^length, _} ->
        nil

      {last, step, cache} ->
        {{logprobs, distribution}, cache} = cached(model, rem(last, @rows), options, cache)
        token = Sampler.choose(distribution, Sampler.uniform(options.seed, index, step))
        next = if token in options.stop_tokens, do: :stopped, else: {token, step + 1, cache}
        {{token, elem(logprobs, token)}, next}
    end)
  end

  defp cached(model, row, options, cache) do
    case cache do
      %{^row => found} ->
        {found, cache}

      _ ->
        logprobs = row(model, row)
        found = {List.to_tuple(logprobs), Sampler.distribution(logprobs, options)}
        {found, Map.put(cache, row, found)}
    end
  end

  @impl true
  def logprobs(model, [first | rest] = tokens) do
    datum = %{
      tokens: Enum.drop(tokens, -1),
      targets: rest,
      weights: Enum.map(rest, fn _ -> 0.0 end)
    }

    {_, [logprobs], _} = if rest == [], do: {0.0, [[]], first}, else: run(model, [datum])
    logprobs
  end

  # logprobs of all ids after a token that chooses this row
  defp row(model, row) do
    bias = Vector.rows(model.weights, 0, 1, model.vocabulary)

    logits =
      bias
      |> Vector.add(Vector.rows(model.weights, row + 1, 1, model.vocabulary))
      |> Vector.to_list()

    most = Enum.max(logits)
    sum = Enum.reduce(logits, 0.0, fn x, sum -> sum + exp(x - most) end)
    shift = most + :math.log(sum)
    Enum.map(logits, &(&1 - shift))
  end

  # Far below, Erlang answers 0.0 or refuses, depending on the system's library.
  defp exp(x), do: if(x < -745.0, do: 0.0, else: :math.exp(x))
end
