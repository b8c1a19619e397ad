defmodule Crucible.ToyModel.Sampler do
  @moduledoc """
  Chooses tokens. A sample is a function of (weights, prompt, options, seed, its index) and of nothing else: its numbers
  are hashes of (seed, index, step), the same on every machine and release.
  """

  @doc "A number in [0, 1) for a step of a sample."
  @spec uniform(integer, non_neg_integer, non_neg_integer) :: float
  def uniform(seed, index, step) do
    <<bits::53, _::bitstring>> = :crypto.hash(:sha256, <<seed::64, index::64, step::64>>)
    bits / 9_007_199_254_740_992
  end

  @doc """
  What a token is chosen from, for logprobs in the order of the ids: `{:greedy, token}` at temperature 0, else ids with
  the running sums of their probabilities, after temperature, top_k and top_p in this order.
  """
  @spec distribution([float], Crucible.Model.sampling()) ::
          {:greedy, non_neg_integer} | {:cumulative, tuple, tuple}
  def distribution(logprobs, %{temperature: temperature}) when temperature == 0.0 do
    {token, _} =
      logprobs
      |> Enum.with_index()
      |> Enum.reduce({0, nil}, fn {x, id}, {best, most} ->
        if most == nil or x > most, do: {id, x}, else: {best, most}
      end)

    {:greedy, token}
  end

  def distribution(logprobs, options) do
    # The best token's becomes 0: the smallest temperature must not make infinities of them all.
    most = Enum.max(logprobs)

    {ids, weights} =
      logprobs
      |> Enum.with_index()
      |> Enum.map(fn {x, id} -> {id, scaled(x - most, options.temperature)} end)
      |> best(options.top_k)
      |> nucleus(options.top_p)
      |> Enum.unzip()

    {:cumulative, List.to_tuple(ids), weights |> Enum.scan(&(&1 + &2)) |> List.to_tuple()}
  end

  defp scaled(x, temperature),
    do: if(x / 750 < -temperature, do: 0.0, else: :math.exp(x / temperature))

  defp best(weights, 0), do: weights
  defp best(weights, k) when k >= length(weights), do: weights
  defp best(weights, k), do: weights |> by_weight() |> Enum.take(k) |> Enum.sort()

  defp nucleus(weights, p) when p >= 1.0, do: weights

  defp nucleus(weights, p) do
    total = weights |> Enum.map(&elem(&1, 1)) |> Enum.sum()

    # Those before which less than p is reached; at least the most likely one.
    {kept, _} =
      Enum.flat_map_reduce(by_weight(weights), 0.0, fn {_, weight} = each, before ->
        if before == 0.0 or before < p * total,
          do: {[each], before + weight},
          else: {:halt, before}
      end)

    Enum.sort(kept)
  end

  # The most likely first, of equal ones the lower id.
  defp by_weight(weights), do: Enum.sort_by(weights, fn {id, weight} -> {-weight, id} end)

  @doc "The token that a number in [0, 1) stands for."
  @spec choose({:greedy, non_neg_integer} | {:cumulative, tuple, tuple}, float) :: non_neg_integer
  def choose({:greedy, token}, _), do: token

  def choose({:cumulative, ids, sums}, uniform) do
    last = tuple_size(sums) - 1
    elem(ids, search(sums, uniform * elem(sums, last), 0, last))
  end

  # The first whose running sum is above the point; rounding may lift the point to the total itself.
  defp search(_, _, low, high) when low == high, do: low

  defp search(sums, point, low, high) do
    middle = div(low + high, 2)

    if elem(sums, middle) > point,
      do: search(sums, point, low, middle),
      else: search(sums, point, middle + 1, high)
  end
end
