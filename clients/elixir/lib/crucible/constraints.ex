defmodule Crucible.Constraints do
  @moduledoc """
  Checks a message against the `(crucible.type.v1.field)` options of its proto, and for fields that the schema lacks.

  Paths are those of the contract: `data[1].loss_fn_inputs['weights'].dtype`.
  """

  alias Crucible.{Error, Proto}
  alias Crucible.Proto.Schema

  @max_characters 4096
  @max_findings 16
  # Looking at each of the millions of empty messages that one request can hold would take minutes.
  @max_nested 512 * 1024
  @formats %{
    identifier:
      {"[a-z0-9][a-z0-9._-]{0,62}",
       "must be a lower-case identifier of at most 63 letters, digits, '-', '_' or '.', such as run-7"},
    uuid:
      {"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
       "must be a UUID such as 2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11"},
    sha256: {"[0-9a-f]{64}", "must be 64 lower-case hex digits"},
    uri: {"[a-z][a-z0-9+.-]*:\\S+", "must be a URI with a scheme, such as blob://bucket/key"}
  }
  @numbers [:double, :float, :int32, :int64, :uint32, :uint64, :sint32, :sint64] ++
             [:fixed32, :fixed64, :sfixed32, :sfixed64]

  @doc "`:ok`, or FIELD_INVALID with the first paths that break a constraint, or MESSAGE_TOO_COMPLEX."
  @spec check(Schema.name(), Proto.message()) :: :ok | {:error, Error.t()}
  def check(type, message) do
    {findings, _} = check_message(type, message, "", {[], 0})
    findings = findings |> Enum.reverse() |> Enum.take(@max_findings)

    if findings == [] do
      :ok
    else
      shown =
        findings |> Enum.take(5) |> Enum.map_join("; ", fn {path, text} -> "#{path}: #{text}" end)

      [{first, _} | _] = findings

      {:error,
       Error.new(:invalid_argument, "FIELD_INVALID", shown,
         metadata: %{field: first},
         fields: findings
       )}
    end
  catch
    {:too_complex, path} ->
      {:error,
       Error.new(
         :invalid_argument,
         "MESSAGE_TOO_COMPLEX",
         "#{path}: the request holds more than #{@max_nested} messages inside it: send it in several calls",
         metadata: %{field: path, max_messages: @max_nested}
       )}
  end

  @doc "`:ok`, or FIELD_UNKNOWN for a field that the schema lacks, at any depth."
  @spec check_unknown(Schema.name(), Proto.message()) :: :ok | {:error, Error.t()}
  def check_unknown(type, message) do
    case find_unknown(type, message, "") do
      nil ->
        :ok

      path ->
        {:error,
         Error.new(
           :invalid_argument,
           "FIELD_UNKNOWN",
           "#{path}: unknown field of #{type}; this adapter's contract does not have it: leave it out or use an " <>
             "adapter that knows it",
           metadata: %{field: path, message: type},
           fields: [{path, "unknown field"}]
         )}
    end
  end

  # Findings are gathered in reverse, beside the number of messages looked at.

  defp check_message(type, message, path, state) do
    fields = Schema.fields(type)
    state = Enum.reduce(fields, state, &check_field(&1, message, path, &2))
    Enum.reduce(fields, state, &check_children(&1, message, path, &2))
  end

  defp check_field({_, name, type, label, rule} = field, message, path, state) do
    value = get(field, message)
    path = path <> Atom.to_string(name)

    state =
      if rule[:required] && not present?(value, type, label),
        do: add(state, path, "required, but absent or empty"),
        else: state

    count = if label in [:repeated, :map], do: Enum.count(value), else: 0

    if count > (rule[:max_items] || count) do
      add(state, path, "has #{count} entries, at most #{rule.max_items} are allowed")
    else
      state |> check_keys(type, value, rule, path) |> check_values(type, label, value, rule, path)
    end
  end

  defp present?(nil, _, _), do: false
  defp present?(value, _, label) when label in [:repeated, :map], do: Enum.count(value) > 0
  defp present?(value, {:enum, enum}, :implicit), do: Schema.enum_number(enum, value) != 0
  defp present?(value, _, :implicit), do: value not in [0, 0.0, "", false]
  defp present?(_, _, _), do: true

  defp check_keys(state, {:map, :string, _}, map, rule, path) do
    limit = rule[:max_len] || @max_characters

    Enum.reduce(map, state, fn {key, _}, state ->
      length = String.length(key)

      if length > limit,
        do:
          add(
            state,
            "#{path}[#{quoted(String.slice(key, 0, 64))}]",
            "its key has #{length} characters, at most #{limit} are allowed"
          ),
        else: state
    end)
  end

  defp check_keys(state, _, _, _, _), do: state

  defp check_values(state, {:map, _, type}, :map, map, rule, path) do
    Enum.reduce(map, state, fn {key, value}, state ->
      check_value(state, type, value, rule, "#{path}[#{quoted(key)}]")
    end)
  end

  defp check_values(state, type, :repeated, list, rule, path) do
    list
    |> Enum.with_index()
    |> Enum.reduce(state, fn {value, index}, state ->
      check_value(state, type, value, rule, "#{path}[#{index}]")
    end)
  end

  defp check_values(state, _, _, nil, _, _), do: state

  defp check_values(state, type, _, value, rule, path),
    do: check_value(state, type, value, rule, path)

  defp check_value({findings, _} = state, type, value, rule, path) do
    problem = length(findings) < @max_findings && problem(type, value, rule)
    if problem, do: add(state, path, problem), else: state
  end

  defp problem(:string, value, rule) do
    limit = rule[:max_len] || @max_characters

    cond do
      String.length(value) > limit ->
        "has #{String.length(value)} characters, at most #{limit} are allowed"

      value == "" ->
        nil

      rule[:pattern] && not matches?(value, rule.pattern) ->
        "#{quoted(value)} must match #{rule.pattern}"

      rule[:format] && not matches?(value, elem(@formats[rule.format], 0)) ->
        "#{quoted(value)} #{elem(@formats[rule.format], 1)}"

      true ->
        nil
    end
  end

  defp problem(:bytes, value, %{max_len: limit}) when byte_size(value) > limit,
    do: "has #{byte_size(value)} bytes, at most #{limit} are allowed"

  defp problem({:enum, enum}, value, _) when is_integer(value),
    do: "#{value} is not a value of #{enum}"

  defp problem(type, value, rule)
       when type in @numbers and (is_map_key(rule, :min) or is_map_key(rule, :max)) do
    cond do
      value == :nan -> "is NaN; a number is required"
      rule[:min] && below?(value, rule.min) -> "is #{value}, must be at least #{number(rule.min)}"
      rule[:max] && below?(rule.max, value) -> "is #{value}, must be at most #{number(rule.max)}"
      is_atom(value) -> "is infinite; a finite number is required"
      true -> nil
    end
  end

  defp problem(_, _, _), do: nil

  defp matches?(value, pattern),
    do: Regex.match?(Regex.compile!("\\A(?:#{pattern})\\z", "u"), value)

  defp below?(_, :infinity), do: true
  defp below?(:infinity, _), do: false
  defp below?(:negative_infinity, _), do: true
  defp below?(_, :negative_infinity), do: false
  defp below?(a, b), do: a < b

  defp number(value), do: if(value == trunc(value), do: trunc(value), else: value)

  defp check_children({_, name, type, label, rule} = field, message, path, state) do
    with {:ok, child} <- checked_child(type),
         value when value != nil <- get(field, message),
         false <-
           label in [:repeated, :map] and
             Enum.count(value) > (rule[:max_items] || Enum.count(value)) do
      path = path <> Atom.to_string(name)

      value
      |> children(label, path)
      |> Enum.reduce_while(state, fn {each, path}, {findings, nested} ->
        if length(findings) >= @max_findings do
          {:halt, {findings, nested}}
        else
          if nested >= @max_nested, do: throw({:too_complex, path})
          {:cont, check_message(child, each, path <> ".", {findings, nested + 1})}
        end
      end)
    else
      _ -> state
    end
  end

  defp checked_child({:map, _, type}), do: checked_child(type)
  defp checked_child({:message, "crucible." <> _ = name}), do: {:ok, name}
  defp checked_child(_), do: :none

  # google.protobuf's own messages grow without us.
  defp known_child({:map, _, type}), do: known_child(type)
  defp known_child({:message, "google.protobuf." <> _}), do: :none
  defp known_child({:message, name}), do: {:ok, name}
  defp known_child(_), do: :none

  defp children(map, :map, path),
    do: map |> Enum.sort() |> Stream.map(fn {key, each} -> {each, "#{path}[#{quoted(key)}]"} end)

  defp children(list, :repeated, path),
    do:
      list
      |> Stream.with_index()
      |> Stream.map(fn {each, index} -> {each, "#{path}[#{index}]"} end)

  defp children(message, _, path), do: [{message, path}]

  defp find_unknown(type, message, path) do
    case message do
      %{__unknown__: [first | _]} ->
        {number, _, _} = Proto.Wire.key(first)
        "#{path}##{number}"

      _ ->
        Enum.find_value(Schema.fields(type), fn {_, name, type, label, _} = field ->
          with {:ok, child} <- known_child(type),
               value when value != nil <- get(field, message) do
            value
            |> children(label, path <> Atom.to_string(name))
            |> Enum.find_value(fn {each, path} -> find_unknown(child, each, path <> ".") end)
          else
            _ -> nil
          end
        end)
    end
  end

  defp get({_, name, _, {:oneof, group}, _}, message) do
    with {^name, value} <- Map.fetch!(message, group), do: value, else: (_ -> nil)
  end

  defp get({_, name, _, _, _}, message), do: Map.fetch!(message, name)

  defp add({findings, nested}, path, text), do: {[{path, text} | findings], nested}

  # As Python prints a string, for one path a field.
  defp quoted(key) when is_binary(key) do
    escaped = String.replace(key, "\\", "\\\\")

    if String.contains?(key, "'") and not String.contains?(key, "\""),
      do: "\"#{escaped}\"",
      else: "'#{String.replace(escaped, "'", "\\'")}'"
  end

  defp quoted(key), do: to_string(key)
end
