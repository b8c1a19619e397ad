defmodule Crucible.Proto.Schema do
  @moduledoc """
  The protos as data: messages, enums and services by full name.

  `priv/schema.exs` is generated from the same descriptors that Python uses; it says what its terms mean.
  """

  @path Path.expand("../../../priv/schema.exs", __DIR__)
  @external_resource @path
  {schema, _} = Code.eval_file(@path)

  @type name :: String.t()
  @type label :: :implicit | :optional | :repeated | :map | {:oneof, atom}
  @type field ::
          {number :: pos_integer, name :: atom, type :: atom | tuple, label, constraints :: map}

  @doc "A message's fields in the order of their numbers. Raises for a name that is no message."
  @spec fields(name) :: [field]
  def fields(name)

  @doc "The same by number."
  @spec by_number(name) :: %{pos_integer => field}
  def by_number(name)

  @doc "A message with every field at its default; a oneof under its group's name, as nil."
  @spec defaults(name) :: map
  def defaults(name)

  @doc "The repeated fields of a message that are no maps."
  @spec repeated(name) :: [atom]
  def repeated(name)

  for {name, fields} <- schema.messages do
    defaults =
      Map.new(fields, fn
        {_, _, _, {:oneof, group}, _} -> {group, nil}
        {_, field, _, :optional, _} -> {field, nil}
        {_, field, _, :repeated, _} -> {field, []}
        {_, field, _, :map, _} -> {field, %{}}
        {_, field, :string, :implicit, _} -> {field, ""}
        {_, field, :bytes, :implicit, _} -> {field, ""}
        {_, field, :bool, :implicit, _} -> {field, false}
        {_, field, :double, :implicit, _} -> {field, 0.0}
        {_, field, :float, :implicit, _} -> {field, 0.0}
        {_, field, {:enum, enum}, :implicit, _} -> {field, schema.enums[enum] |> hd() |> elem(1)}
        {_, field, _, :implicit, _} -> {field, 0}
      end)

    by_number = Map.new(fields, &{elem(&1, 0), &1})
    repeated = for {_, field, _, :repeated, _} <- fields, do: field

    def fields(unquote(name)), do: unquote(Macro.escape(fields))
    def by_number(unquote(name)), do: unquote(Macro.escape(by_number))
    def defaults(unquote(name)), do: unquote(Macro.escape(defaults))
    def repeated(unquote(name)), do: unquote(repeated)
  end

  @doc "The name of an enum's value; a number that the proto lacks stays a number."
  @spec enum_name(name, integer) :: atom | integer
  def enum_name(enum, number)

  @doc "The number of an enum's value, given by name or number."
  @spec enum_number(name, atom | integer) :: integer
  def enum_number(enum, value)

  for {name, values} <- schema.enums, {number, value} <- values do
    def enum_name(unquote(name), unquote(number)), do: unquote(value)
    def enum_number(unquote(name), unquote(value)), do: unquote(number)
  end

  def enum_name(_, number), do: number
  def enum_number(_, number) when is_integer(number), do: number

  @type kind :: :unary | :server_stream | :client_stream
  @type method :: {name :: String.t(), request :: name, response :: name, kind}

  @doc "A service's methods."
  @spec methods(name) :: [method]
  def methods(service)

  @doc "SHA-256 of the descriptor of the file that declares a service, in hex."
  @spec descriptor_sha256(name) :: String.t()
  def descriptor_sha256(service)

  for {name, service} <- schema.services do
    def methods(unquote(name)), do: unquote(Macro.escape(service.methods))
    def descriptor_sha256(unquote(name)), do: unquote(service.descriptor_sha256)
  end

  @doc "The full names of all messages."
  @spec messages() :: [name]
  def messages, do: unquote(schema.messages |> Map.keys() |> Enum.sort())
end
