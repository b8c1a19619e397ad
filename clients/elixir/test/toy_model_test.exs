defmodule Crucible.ToyModelTest do
  use ExUnit.Case, async: true
  alias Crucible.{Safetensors, ToyModel, TrainingState}
  alias Crucible.Checkpoints.Folder
  alias Crucible.ToyModel.{Sampler, Vector}

  @adam %{
    learning_rate: 0.1,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1.0e-8,
    weight_decay: 0.0,
    grad_clip_norm: 0.0
  }
  @greedy %{temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0, max_tokens: 3, stop_tokens: []}

  # Two ids; after any token their probabilities are 1/4 and 3/4.
  defp quarter do
    %ToyModel{
      vocabulary: 2,
      weights: Vector.from_list([0.0, :math.log(3)] ++ List.duplicate(0.0, 16))
    }
  end

  defp datum(tokens, targets, weights), do: %{tokens: tokens, targets: targets, weights: weights}

  test "loss and gradient by hand" do
    {loss, [[first, second]], model} =
      ToyModel.forward_backward(quarter(), [datum([0, 1], [0, 1], [2.0, 1.0])])

    assert_in_delta first, :math.log(0.25), 1.0e-15
    assert_in_delta second, :math.log(0.75), 1.0e-15
    assert_in_delta loss, 2 * :math.log(4) + :math.log(4 / 3), 1.0e-15

    # weight x (softmax - onehot): row 0 has 2 x (1/4 - 1, 3/4), row 1 has (1/4, 3/4 - 1), the bias their sum.
    gradients = Vector.to_list(model.gradients)
    expected = [-1.25, 1.25, -1.5, 1.5, 0.25, -0.25] ++ List.duplicate(0.0, 12)

    for {ours, theirs} <- Enum.zip(gradients, expected),
        do: assert_in_delta(ours, theirs, 1.0e-15)
  end

  test "gradients of two passes add up, and a pass without gradients leaves them" do
    data = [datum([0, 1], [0, 1], [2.0, 1.0])]
    {_, _, once} = ToyModel.forward_backward(quarter(), data)
    {_, _, twice} = ToyModel.forward_backward(once, data)

    assert Vector.to_list(twice.gradients) ==
             once.gradients |> Vector.to_list() |> Enum.map(&(2 * &1))

    assert ToyModel.forward(once, data) == ToyModel.forward(quarter(), data)
  end

  test "the gradient is that of finite differences" do
    {:ok, model} = ToyModel.open("toy-5", %{})
    data = [datum([0, 3, 4, 3], [3, 4, 3, 1], [1.0, -0.5, 2.0, 0.25]), datum([2], [2], [1.0])]
    {_, _, %{gradients: gradients}} = ToyModel.forward_backward(model, data)
    weights = Vector.to_list(model.weights)

    for {gradient, index} <- gradients |> Vector.to_list() |> Enum.with_index() do
      [above, below] =
        for step <- [1.0e-6, -1.0e-6] do
          moved = List.update_at(weights, index, &(&1 + step))
          elem(ToyModel.forward(%{model | weights: Vector.from_list(moved)}, data), 0)
        end

      assert_in_delta (above - below) / 2.0e-6, gradient, 1.0e-8
    end
  end

  test "the first AdamW step is the learning rate, against the gradient's sign" do
    {_, _, model} = ToyModel.forward_backward(quarter(), [datum([0], [0], [1.0])])
    {:ok, norm, change, stepped} = ToyModel.optim_step(model, @adam)
    # The bias and row 0 have gradients of 3/4, two up and two down.
    assert_in_delta norm, :math.sqrt(4 * 0.75 * 0.75), 1.0e-15
    assert_in_delta change, 0.1 * 2, 1.0e-8
    [bias0, bias1, row0, row1 | others] = Vector.to_list(stepped.weights)

    for {ours, theirs} <- [{bias0, 0.1}, {bias1, :math.log(3) - 0.1}, {row0, 0.1}, {row1, -0.1}],
        do: assert_in_delta(ours, theirs, 1.0e-8)

    assert Enum.all?(others, &(&1 == 0.0))
  end

  test "weight decay takes its part of each weight, gradient or not, and counts as change" do
    {_, _, model} = ToyModel.forward_backward(quarter(), [datum([0], [0], [0.0])])
    {:ok, 0.0, change, stepped} = ToyModel.optim_step(model, %{@adam | weight_decay: 0.5})
    assert_in_delta change, 0.1 * 0.5 * :math.log(3), 1.0e-15
    assert_in_delta Enum.at(Vector.to_list(stepped.weights), 1), 0.95 * :math.log(3), 1.0e-15
  end

  test "first weights depend on the model's name alone" do
    {:ok, one} = ToyModel.open("toy-7", %{})
    assert {:ok, ^one} = ToyModel.open("toy-7", %{})
    assert Vector.size(one.weights) == 9 * 7
    assert one.weights |> Vector.to_list() |> Enum.uniq() |> length() == 63
    assert {:error, %{reason: "MODEL_NOT_FOUND"}} = ToyModel.open("toy-1", %{})
    assert {:error, %{fields: [{"dtype", _}]}} = ToyModel.open("toy-7", %{dtype: "bfloat16"})
  end

  describe "choosing" do
    @logprobs Enum.map([0.1, 0.4, 0.2, 0.3], &:math.log/1)

    defp chosen(options) do
      distribution = Sampler.distribution(@logprobs, Map.merge(@greedy, options))
      for point <- [0.0, 0.2, 0.45, 0.55, 0.75, 0.99], do: Sampler.choose(distribution, point)
    end

    test "by inverse CDF in the order of the ids" do
      assert chosen(%{temperature: 1.0}) == [0, 1, 1, 2, 3, 3]
      assert chosen(%{temperature: 0.0}) == [1, 1, 1, 1, 1, 1]
      assert chosen(%{temperature: 1.0e-300}) == [1, 1, 1, 1, 1, 1]
    end

    test "top_k, then top_p" do
      assert chosen(%{temperature: 1.0, top_k: 2}) == [1, 1, 1, 1, 3, 3]
      assert chosen(%{temperature: 1.0, top_p: 0.5}) == [1, 1, 1, 1, 3, 3]
      assert chosen(%{temperature: 1.0, top_p: 0.0}) == [1, 1, 1, 1, 1, 1]
      assert chosen(%{temperature: 1.0, top_k: 3, top_p: 0.7}) == [1, 1, 1, 1, 3, 3]
    end

    test "of equals the lowest id" do
      assert Sampler.distribution([-1.0, -0.5, -0.5], @greedy) == {:greedy, 1}
    end

    test "numbers are fixed for ever" do
      assert Enum.map([{0, 0, 0}, {0, 1, 0}, {-1, 0, 5}], fn {seed, index, step} ->
               Sampler.uniform(seed, index, step)
             end) ==
               [0.6154870278466629, 0.4452309045278754, 0.6891033895584276]
    end
  end

  test "samples end at a stop token or the length, and depend on (seed, index) alone" do
    {:ok, model} = ToyModel.open("toy-16", %{})
    options = %{@greedy | temperature: 1.0, max_tokens: 20}

    sample = fn options, index ->
      model |> ToyModel.sample([3, 1], options, index) |> Enum.map(&elem(&1, 0))
    end

    tokens = sample.(options, 0)
    assert length(tokens) == 20
    assert sample.(options, 0) == tokens
    assert sample.(options, 1) != tokens
    assert sample.(%{options | seed: 1}, 0) != tokens
    stop = Enum.at(tokens, 7)
    stopped = sample.(%{options | stop_tokens: [stop]}, 0)
    assert stopped == Enum.take(tokens, length(stopped))
    assert List.last(stopped) == stop
  end

  test "sampled logprobs are those of the trainer" do
    {:ok, model} = ToyModel.open("toy-16", %{})

    {tokens, logprobs} =
      model
      |> ToyModel.sample([5], %{@greedy | temperature: 2.0, top_k: 4, max_tokens: 6}, 0)
      |> Enum.unzip()

    assert ToyModel.logprobs(model, [5 | tokens]) == logprobs

    {_, [trained]} =
      ToyModel.forward(model, [datum([5 | Enum.drop(tokens, -1)], tokens, List.duplicate(1.0, 6))])

    assert trained == logprobs
  end

  describe "the rules around it" do
    defp state, do: %TrainingState{module: ToyModel, model: quarter(), base_model: "toy-2"}

    defp trained(state),
      do: state |> TrainingState.forward_backward([datum([0], [0], [1.0])]) |> elem(2)

    test "a step needs gradients, and takes them" do
      assert {:error, %{reason: "NO_GRADIENTS"}, state} = TrainingState.optim_step(state(), @adam)

      assert {:ok, %{optim_steps: 1, weights_version: 1}, state} =
               state |> trained() |> TrainingState.optim_step(@adam)

      assert {:error, %{reason: "NO_GRADIENTS"}, _} = TrainingState.optim_step(state, @adam)
    end

    test "half a batch is no step" do
      state =
        state()
        |> trained()
        |> TrainingState.invalidate_gradients("it was cancelled")
        |> trained()

      assert {:error, %{reason: "GRADIENTS_INVALID"} = error, state} =
               TrainingState.optim_step(state, @adam)

      assert error.message =~ "cancelled"
      {:ok, _, after_failure} = state |> trained() |> TrainingState.optim_step(@adam)
      {:ok, _, clean} = state() |> trained() |> TrainingState.optim_step(@adam)
      assert after_failure.model == clean.model
    end

    test "a step that is not finite loses the session until a checkpoint is loaded" do
      folder = Path.join(System.tmp_dir!(), "crucible-test-#{System.unique_integer([:positive])}")
      on_exit(fn -> File.rm_rf!(folder) end)
      File.mkdir!(folder)
      TrainingState.save!(state(), folder, true)
      # Its change has no norm.
      huge = %{@adam | learning_rate: 1.0e200}

      assert {:error, %{reason: "NUMERIC_ERROR"}, lost} =
               state() |> trained() |> TrainingState.optim_step(huge)

      assert {:error, %{reason: "NUMERIC_ERROR"}, _} = TrainingState.optim_step(lost, @adam)
      assert_raise Crucible.Error, fn -> TrainingState.forward(lost, [datum([0], [0], [1.0])]) end
      assert {:ok, found} = TrainingState.load(lost, Folder.verify!(folder), true)
      assert found.model.weights == quarter().weights
      assert {:ok, _, _} = found |> trained() |> TrainingState.optim_step(@adam)
    end
  end

  test "safetensors that are none" do
    path = Path.join(System.tmp_dir!(), "crucible-test-#{System.unique_integer([:positive])}")
    on_exit(fn -> File.rm(path) end)

    for bytes <- [
          "",
          <<9::little-64, "{}">>,
          <<2::little-64, "[]">>,
          <<72::little-64,
            ~s({"a":{"dtype":"F64","shape":[1],"data_offsets":[0,16]}}                   )>>
        ] do
      File.write!(path, bytes)
      assert Safetensors.read(path) == :error
    end
  end
end
