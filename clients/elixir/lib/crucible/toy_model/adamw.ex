defmodule Crucible.ToyModel.AdamW do
  @moduledoc "AdamW (Loshchilov and Hutter 2019) over one vector, in the order of torch.optim.AdamW's operations."

  alias Crucible.ToyModel.Vector

  @doc """
  The weights, first and second moments after step number `step`, and the sum of the squares of the weights' change.
  `scale` is what the gradients are scaled by to clip them.
  """
  @spec step(
          {Vector.t(), Vector.t(), Vector.t()},
          Vector.t(),
          pos_integer,
          float,
          Crucible.Model.adam()
        ) ::
          {{Vector.t(), Vector.t(), Vector.t()}, float}
  def step({weights, first, second}, gradients, step, scale, adam) do
    constants = %{
      scale: scale,
      keep1: 1.0 - adam.beta1,
      keep2: 1.0 - adam.beta2,
      beta2: adam.beta2,
      eps: adam.eps,
      decay: adam.learning_rate * adam.weight_decay,
      rate: adam.learning_rate / (1.0 - :math.pow(adam.beta1, step)),
      root: :math.sqrt(1.0 - :math.pow(adam.beta2, step))
    }

    walk(weights, first, second, gradients, constants, [], [], [], 0.0)
  end

  defp walk(
         <<w::float-little-64, ws::binary>>,
         <<m::float-little-64, ms::binary>>,
         <<v::float-little-64, vs::binary>>,
         <<g::float-little-64, gs::binary>>,
         c,
         weights,
         first,
         second,
         squares
       ) do
    g = g * c.scale
    m = m + c.keep1 * (g - m)
    v = v * c.beta2 + c.keep2 * g * g
    step = -c.rate * (m / (:math.sqrt(v) / c.root + c.eps))
    change = step - w * c.decay
    w = w * (1.0 - c.decay) + step
    walk(ws, ms, vs, gs, c, [w | weights], [m | first], [v | second], squares + change * change)
  end

  defp walk(<<>>, <<>>, <<>>, <<>>, _, weights, first, second, squares),
    do: {{vector(weights), vector(first), vector(second)}, squares}

  defp vector(reversed), do: reversed |> Enum.reverse() |> Vector.from_list()
end
