defmodule Crucible.Fault do
  @moduledoc """
  Named places where tests make this process die or freeze, in the form that the project's other programs read:

      CRUCIBLE_FAULTS   point[:passing][=kill|stop][,...]; absent: nothing ever happens

  `engine.optim_step.after` is passed when the weights have changed and nobody has been told.
  """

  @points ["engine.optim_step.after"]

  @doc "Reads the variable. What is no fault of ours is an error: a typo must not test nothing."
  @spec load() :: :ok | {:error, String.t()}
  def load do
    specs = "CRUCIBLE_FAULTS" |> System.get_env("") |> String.split(",", trim: true)

    case Enum.split_with(Enum.map(specs, &parse/1), &is_tuple/1) do
      {faults, []} ->
        :persistent_term.put(__MODULE__, {faults, :counters.new(length(@points), [])})

      {_, [wrong | _]} ->
        {:error,
         "CRUCIBLE_FAULTS: #{inspect(wrong)} is none, the points are #{Enum.join(@points, ", ")}"}
    end
  end

  @doc "Passes a point."
  @spec point(String.t()) :: :ok
  def point(name) do
    with {[_ | _] = faults, counters} <- :persistent_term.get(__MODULE__, nil) do
      index = Enum.find_index(@points, &(&1 == name)) + 1
      :counters.add(counters, index, 1)
      passing = :counters.get(counters, index)
      for {^name, ^passing, signal} <- faults, do: happen(signal)
    end

    :ok
  end

  defp parse(spec) do
    case Regex.run(~r/\A([a-z_.]+)(:[1-9][0-9]*)?(=kill|=stop)?\z/, String.trim(spec)) do
      [_, point | rest] when point in @points ->
        passing = with [":" <> count | _] <- rest, do: String.to_integer(count), else: (_ -> 1)
        {point, passing, if("=stop" in rest, do: "STOP", else: "KILL")}

      _ ->
        spec
    end
  end

  defp happen(signal) do
    System.cmd("kill", ["-#{signal}", System.pid()])
    # The signal is on its way.
    Process.sleep(:infinity)
  end
end
