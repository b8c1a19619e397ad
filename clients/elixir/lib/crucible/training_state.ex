defmodule Crucible.TrainingState do
  @moduledoc """
  What a training session computes on: a model's state, and the rules of gradients, failures and versions around it.

      forward_backward ... forward_backward   gradients add up; nothing is averaged
      optim_step                              clip, AdamW, weights_version + 1, gradients gone
  """

  alias Crucible.Error
  alias Crucible.Checkpoints.Folder

  @enforce_keys [:module, :model, :base_model]
  defstruct [
    :module,
    :model,
    :base_model,
    gradients: :none,
    # A step has left weights that are not finite.
    lost: false,
    optim_steps: 0,
    weights_version: 0
  ]

  @type t :: %__MODULE__{
          module: module,
          model: Crucible.Model.state(),
          base_model: String.t(),
          gradients: :none | :some | {:invalid, String.t()}
        }

  @doc "Loss and logprobs; nothing changes."
  @spec forward(t, [Crucible.Model.datum()]) :: {float, [[float]]}
  def forward(state, data) do
    check_weights!(state)
    finite!(fn -> state.module.forward(state.model, data) end, "the loss is not finite")
  end

  @doc "The same, and the gradients added. When it raises, the caller invalidates the gradients."
  @spec forward_backward(t, [Crucible.Model.datum()]) :: {float, [[float]], t}
  def forward_backward(state, data) do
    check_weights!(state)

    {loss, logprobs, model} =
      finite!(
        fn -> state.module.forward_backward(state.model, data) end,
        "the loss or its gradient is not finite"
      )

    gradients = if state.gradients == :none, do: :some, else: state.gradients
    state = %{state | model: model, gradients: gradients}
    # Half a batch must not become a step.
    {loss, logprobs, if(gradients == :some, do: state, else: zeroed(state, gradients))}
  end

  @doc "The gradients gone, and the next step refused, because a forward_backward did not take effect."
  @spec invalidate_gradients(t, String.t()) :: t
  def invalidate_gradients(state, reason), do: zeroed(state, {:invalid, reason})

  @doc """
  One step; the gradients are gone whether it succeeds or not.

  Errors: GRADIENTS_INVALID, NO_GRADIENTS, NUMERIC_ERROR; after a step that is not finite the state is lost.
  """
  @spec optim_step(t, Crucible.Model.adam()) :: {:ok, map, t} | {:error, Error.t(), t}
  def optim_step(%{lost: true} = state, _), do: {:error, not_finite(), state}

  def optim_step(%{gradients: {:invalid, reason}} = state, _) do
    text =
      "a forward_backward of this step did not take effect: #{reason}; send the whole step again"

    {:error, failed("GRADIENTS_INVALID", text), zeroed(state, :none)}
  end

  def optim_step(%{gradients: :none} = state, _),
    do:
      {:error,
       failed("NO_GRADIENTS", "no gradients: send a forward_backward before this optim_step"),
       state}

  def optim_step(state, adam) do
    {:ok, grad_norm, update_norm, model} = state.module.optim_step(state.model, adam)

    state =
      zeroed(
        %{
          state
          | model: model,
            optim_steps: state.optim_steps + 1,
            weights_version: state.weights_version + 1
        },
        :none
      )

    result = %{
      grad_norm: grad_norm,
      update_norm: update_norm,
      learning_rate: adam.learning_rate,
      optim_steps: state.optim_steps,
      weights_version: state.weights_version
    }

    {:ok, result, state}
  rescue
    ArithmeticError -> {:error, not_finite(), zeroed(%{state | lost: true}, :none)}
    error in Error -> {:error, error, zeroed(state, :none)}
  end

  @doc "Writes and seals a folder."
  @spec save!(t, Path.t(), boolean) :: :ok
  def save!(state, folder, weights_only) do
    check_weights!(state)
    :ok = state.module.save(state.model, folder, weights_only)
    dtype = state.module.describe(state.model).dtype

    Folder.seal!(folder, %{
      dtype: dtype,
      optim_steps: state.optim_steps,
      weights_version: state.weights_version
    })
  end

  @doc "The weights, and the optimizer, of a verified folder; the state as it was when that fails."
  @spec load(t, Folder.t(), boolean) :: {:ok, t} | {:error, Error.t()}
  def load(state, folder, weights_only) do
    with {:ok, model} <- state.module.load(state.model, folder.path, weights_only) do
      {:ok,
       zeroed(
         %{
           state
           | model: model,
             lost: false,
             optim_steps: folder.optim_steps,
             weights_version: state.weights_version + 1
         },
         :none
       )}
    end
  end

  defp zeroed(state, gradients),
    do: %{state | model: state.module.zero_gradients(state.model), gradients: gradients}

  defp check_weights!(%{lost: true}), do: raise(not_finite())
  defp check_weights!(_), do: :ok

  defp finite!(function, problem) do
    function.()
  rescue
    ArithmeticError ->
      reraise failed(
                "NUMERIC_ERROR",
                "#{problem}: look at the loss weights, or lower the learning rate"
              ),
              __STACKTRACE__
  end

  defp not_finite do
    failed(
      "NUMERIC_ERROR",
      "the weights are not finite since an optimizer step: load a checkpoint, and lower the learning rate"
    )
  end

  defp failed(reason, text), do: Error.new(:failed_precondition, reason, text)
end
