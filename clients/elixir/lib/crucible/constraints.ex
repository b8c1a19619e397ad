defmodule Crucible.Constraints do
  @moduledoc """
  Checks a message against the `(crucible.type.v1.field)` options of its proto, and for fields that the schema lacks.

  Paths are those of the contract: `data[1].loss_fn_inputs['weights'].dtype`.
  """

  alias Crucible.{Error, Proto}
  alias Crucible.Proto.Schema

  @max_characters 4096
  @max_findings 16
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

  # JSON as messages: nothing is asked of it but that it is JSON.
  @json ["google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"]

  @doc "`:ok`, or FIELD_INVALID with the first paths that break a constraint."
  @spec check(Schema.name(), Proto.message()) :: :ok | {:error, Error.t()}
  def check(type, message) do
    findings =
      type |> check_message(message, "", []) |> Enum.reverse() |> Enum.take(@max_findings)

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

  # Findings are gathered in reverse.

  defp check_message(type, message, path, findings) do
    fields = Schema.fields(type)

    findings =
      if type in @json,
        do: check_json_number(fields, message, path, findings),
        else: Enum.reduce(fields, findings, &check_field(&1, message, path, &2))

    Enum.reduce(fields, findings, &check_children(&1, message, path, &2))
  end

  # A google.protobuf.Value holds any double, but JSON has neither NaN nor infinities.
  defp check_json_number(fields, message, path, findings) do
    with field when field != nil <- Enum.find(fields, &(elem(&1, 1) == :number_value)),
         value when is_atom(value) and value != nil <- get(field, message) do
      add(
        findings,
        path <> "number_value",
        "is #{value}; JSON has no such number: send a text"
      )
    else
      _ -> findings
    end
  end

  defp check_field({_, name, type, label, rule} = field, message, path, findings) do
    value = get(field, message)
    path = path <> Atom.to_string(name)

    findings =
      if rule[:required] && not present?(value, type, label),
        do: add(findings, path, "required, but absent or empty"),
        else: findings

    count = if label in [:repeated, :map], do: Enum.count(value), else: 0

    if count > (rule[:max_items] || count) do
      add(findings, path, "has #{count} entries, at most #{rule.max_items} are allowed")
    else
      findings
      |> check_keys(type, value, rule, path)
      |> check_values(type, label, value, rule, path)
    end
  end

  defp present?(nil, _, _), do: false
  defp present?(value, _, label) when label in [:repeated, :map], do: Enum.count(value) > 0
  defp present?(value, {:enum, enum}, :implicit), do: Schema.enum_number(enum, value) != 0
  defp present?(value, _, :implicit), do: value not in [0, 0.0, "", false]
  defp present?(_, _, _), do: true

  defp check_keys(findings, {:map, :string, _}, map, rule, path) do
    limit = rule[:max_len] || @max_characters

    Enum.reduce(map, findings, fn {key, _}, findings ->
      length = characters(key)

      if length > limit,
        do:
          add(
            findings,
            "#{path}[#{quoted(Error.first(key, 64))}]",
            "its key has #{length} characters, at most #{limit} are allowed"
          ),
        else: findings
    end)
  end

  defp check_keys(findings, _, _, _, _), do: findings

  defp check_values(findings, {:map, _, type}, :map, map, rule, path) do
    Enum.reduce(map, findings, fn {key, value}, findings ->
      check_value(findings, type, value, rule, "#{path}[#{quoted(key)}]")
    end)
  end

  defp check_values(findings, type, :repeated, list, rule, path) do
    list
    |> Enum.with_index()
    |> Enum.reduce(findings, fn {value, index}, findings ->
      check_value(findings, type, value, rule, "#{path}[#{index}]")
    end)
  end

  defp check_values(findings, _, _, nil, _, _), do: findings

  defp check_values(findings, type, _, value, rule, path),
    do: check_value(findings, type, value, rule, path)

  defp check_value(findings, type, value, rule, path) do
    problem = length(findings) < @max_findings && problem(type, value, rule)
    if problem, do: add(findings, path, problem), else: findings
  end

  defp problem(:string, value, rule) do
    limit = rule[:max_len] || @max_characters

    cond do
      byte_size(value) > limit and characters(value) > limit ->
        "has #{characters(value)} characters, at most #{limit} are allowed"

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

  # Code points: what looks like one to a reader may be many, and to find out takes seconds for a long text.
  defp characters(text), do: for(<<_::utf8 <- text>>, reduce: 0, do: (count -> count + 1))

  defp matches?(value, pattern),
    do: Regex.match?(Regex.compile!("\\A(?:#{pattern})\\z", "u"), value)

  defp below?(_, :infinity), do: true
  defp below?(:infinity, _), do: false
  defp below?(:negative_infinity, _), do: true
  defp below?(_, :negative_infinity), do: false
  defp below?(a, b), do: a < b

  defp number(value), do: if(value == trunc(value), do: trunc(value), else: value)

  defp check_children({_, name, type, label, rule} = field, message, path, findings) do
    with {:ok, child} <- checked_child(type),
         value when value != nil <- get(field, message),
         false <-
           label in [:repeated, :map] and
             Enum.count(value) > (rule[:max_items] || Enum.count(value)) do
      path = path <> Atom.to_string(name)

      value
      |> children(label, path)
      |> Enum.reduce_while(findings, fn {each, path}, findings ->
        if length(findings) >= @max_findings,
          do: {:halt, findings},
          else: {:cont, check_message(child, each, path <> ".", findings)}
      end)
    else
      _ -> findings
    end
  end

  defp checked_child({:map, _, type}), do: checked_child(type)
  defp checked_child({:message, "crucible." <> _ = name}), do: {:ok, name}
  defp checked_child({:message, name}) when name in @json, do: {:ok, name}
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

  defp add(findings, path, text), do: [{path, text} | findings]

  @doc "A map's key in a path; a string as Python prints it, so that every language names a field alike."
  @spec quoted(String.t() | integer | boolean) :: String.t()
  def quoted(key) when is_binary(key) do
    mark = if String.contains?(key, "'") and not String.contains?(key, "\""), do: ?", else: ?'
    escaped = for <<character::utf8 <- key>>, into: "", do: escaped(character, mark)
    <<mark, escaped::binary, mark>>
  end

  def quoted(key), do: to_string(key)

  defp escaped(same, same), do: <<?\\, same>>
  defp escaped(?\\, _), do: "\\\\"
  defp escaped(?\n, _), do: "\\n"
  defp escaped(?\r, _), do: "\\r"
  defp escaped(?\t, _), do: "\\t"

  defp escaped(character, _) when character < 0x20 or character in 0x7F..0xA0 do
    "\\x" <>
      (character |> Integer.to_string(16) |> String.downcase() |> String.pad_leading(2, "0"))
  end

  defp escaped(character, _), do: <<character::utf8>>
end
