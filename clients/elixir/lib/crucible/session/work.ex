defmodule Crucible.Session.Work do
  @moduledoc """
  What an operation does.

    * `run`: subject to `{:ok, {member, result}, subject}` or `{:error, error, subject}`; may raise
    * `failed`: what an end by an exception, or by a cancellation before it began, makes of the subject; its second
      argument says which
    * `stoppable`: whether a cancellation may end it while it runs, the subject as it was
    * `tokens`: that it runs through the model, at most
  """

  @enforce_keys [:run]
  defstruct [:run, failed: nil, stoppable: false, tokens: 0]

  @type t :: %__MODULE__{}

  @doc "Carries it out; `where` names it in the log."
  @spec carry_out(t, term, String.t()) :: {:ok, {atom, map}, term} | {:error, Exception.t(), term}
  def carry_out(work, subject, where) do
    work.run.(subject)
  rescue
    error in Crucible.Error ->
      {:error, error, failed(work, subject, "it ended with #{error.reason}")}

    error ->
      hidden = Crucible.Error.hidden(where, :error, error, __STACKTRACE__)
      {:error, hidden, failed(work, subject, "it ended with #{inspect(error.__struct__)}")}
  end

  @doc "The subject after it did not take effect."
  @spec failed(t, term, String.t()) :: term
  def failed(%{failed: nil}, subject, _), do: subject
  def failed(work, subject, reason), do: work.failed.(subject, reason)
end
