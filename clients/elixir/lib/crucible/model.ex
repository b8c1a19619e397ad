defmodule Crucible.Model do
  @moduledoc """
  What computes behind the services. `Crucible.ToyModel` is one; one over a real trainer keeps, as its state, what it
  needs to reach it, such as the pid of a client.

  Order, repeats, results, the rules of gradients and failures, and checkpoints' folders and hashes are not its concern:
  `Crucible.Session`, `Crucible.TrainingState` and `Crucible.Checkpoints` see to them.

  Functions may raise `Crucible.Error`. A number that Erlang's floats cannot hold (`ArithmeticError`) counts as one that
  is not finite.
  """

  @type state :: term
  @type token :: non_neg_integer
  @typedoc "One training sequence, all of one length: ids, ids that follow, weights of the loss (float32)."
  @type datum :: %{tokens: [token], targets: [token], weights: [float]}
  @type adam :: %{
          learning_rate: float,
          beta1: float,
          beta2: float,
          eps: float,
          weight_decay: float,
          grad_clip_norm: float
        }
  @type sampling :: %{
          temperature: float,
          top_p: float,
          top_k: non_neg_integer,
          seed: integer,
          max_tokens: pos_integer,
          stop_tokens: [token]
        }
  @typedoc "What TrainingSession says of it; `lora` as the session asked for it, defaults filled in."
  @type description :: %{
          optional(:lora) => Crucible.Proto.message(),
          vocab_size: pos_integer,
          max_sequence_tokens: pos_integer,
          trainable_parameters: non_neg_integer,
          dtype: String.t(),
          device: String.t()
        }

  @doc "The capabilities it has by port, such as `training.full`."
  @callback capabilities() :: %{String.t() => [String.t()]}

  @doc "Opens a base model. `options`: `dtype`, `seed`, `lora` and `base_model_name` as in CreateTrainingSessionRequest."
  @callback open(base_model :: String.t(), options :: map) ::
              {:ok, state} | {:error, Crucible.Error.t()}

  @doc "Opens the model of a checkpoint's folder for sampling."
  @callback open_checkpoint(Path.t()) :: {:ok, state} | {:error, Crucible.Error.t()}

  @callback describe(state) :: description

  @doc "cross_entropy of the data: the sum of -weight x logprob, and each datum's logprobs of its targets."
  @callback forward(state, [datum]) :: {loss :: float, [[float]]}

  @doc "The same, and its gradient added to the gradients that the state holds."
  @callback forward_backward(state, [datum]) :: {loss :: float, [[float]], state}

  @doc "The gradients gone."
  @callback zero_gradients(state) :: state

  @doc "One AdamW step with the gradients: the norm before clipping, that of the weights' change, and the new weights."
  @callback optim_step(state, adam) :: {:ok, grad_norm :: float, update_norm :: float, state}

  @doc "Writes the weights into a folder, and the optimizer's state unless `weights_only`; equal states, equal bytes."
  @callback save(state, Path.t(), weights_only :: boolean) :: :ok

  @doc "The state with a folder's weights, and its optimizer (a fresh one if `weights_only`), or CHECKPOINT_MISMATCH."
  @callback load(state, Path.t(), weights_only :: boolean) ::
              {:ok, state} | {:error, Crucible.Error.t()}

  @doc "The tokens of sample `index` of a prompt with their logprobs at temperature 1, one by one, a stop token last."
  @callback sample(state, prompt :: [token], sampling, index :: non_neg_integer) ::
              Enumerable.t({token, float})

  @doc "The logprob of each token but the first, given those before it."
  @callback logprobs(state, [token]) :: [float]

  @doc "`:ok` when the model declares a capability of a port, else UNIMPLEMENTED CAPABILITY_MISSING."
  @spec check(module, String.t(), String.t(), String.t()) :: :ok | {:error, Crucible.Error.t()}
  def check(model, port, capability, fix) do
    if capability in model.capabilities()[port],
      do: :ok,
      else: {:error, Crucible.Error.capability_missing(port, capability, fix)}
  end
end
