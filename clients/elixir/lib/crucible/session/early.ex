defmodule Crucible.Session.Early do
  @moduledoc """
  Calls that came before their turn, by number, in the order in which they came. Their callers are watched, and their
  time is limited: the owner gets `{:early_too_long, sequence, from}`, or the caller's `:DOWN`.
  """

  @type call ::
          {from :: GenServer.from(), sequence :: pos_integer, digest :: binary, work :: struct}
  @type t :: %{pos_integer => [map]}

  @doc "Keeps a call for so long."
  @spec hold(t, call, non_neg_integer) :: t
  def hold(early, {{pid, _} = from, sequence, _, _} = call, milliseconds) do
    held = %{
      call: call,
      monitor: Process.monitor(pid),
      timer: Process.send_after(self(), {:early_too_long, sequence, from}, milliseconds)
    }

    Map.update(early, sequence, [held], &(&1 ++ [held]))
  end

  @doc "The calls of a number whose callers still wait, and the others."
  @spec take(t, pos_integer) :: {[call], t}
  def take(early, sequence) do
    {held, others} = Map.pop(early, sequence, [])
    calls = Enum.map(held, &let_go/1)
    # The end of a caller may not have been told yet.
    {Enum.filter(calls, fn {{pid, _}, _, _, _} -> Process.alive?(pid) end), others}
  end

  @doc "All calls."
  @spec all(t) :: [call]
  def all(early), do: for({_, held} <- early, each <- held, do: let_go(each))

  @doc "The call of a caller, if it is still held, and the others."
  @spec take_from(t, pos_integer, GenServer.from()) :: {call | nil, t}
  def take_from(early, sequence, from), do: pull(early, sequence, &(elem(&1.call, 0) == from))

  @doc "Without the call whose caller's end this monitor tells; `:error` when it watches none."
  @spec hung_up(t, reference) :: {:ok, t} | :error
  def hung_up(early, monitor) do
    found = Enum.find(early, fn {_, held} -> Enum.any?(held, &(&1.monitor == monitor)) end)

    with {sequence, _} <- found,
         do: {:ok, early |> pull(sequence, &(&1.monitor == monitor)) |> elem(1)},
         else: (nil -> :error)
  end

  defp pull(early, sequence, wanted?) do
    case Enum.split_with(Map.get(early, sequence, []), wanted?) do
      {[], _} -> {nil, early}
      {[held | _], []} -> {let_go(held), Map.delete(early, sequence)}
      {[held | _], others} -> {let_go(held), Map.put(early, sequence, others)}
    end
  end

  defp let_go(held) do
    Process.demonitor(held.monitor, [:flush])
    Process.cancel_timer(held.timer)
    held.call
  end
end
