defmodule Crucible.Error do
  @moduledoc """
  An outcome that is not OK, and its wire forms: a google.rpc.Status, and a Failure where an error is data.

    * `code`: gRPC's, such as `:invalid_argument`
    * `message`: for people; names the field, the value and the fix
    * `reason`: for programs; UPPER_SNAKE_CASE, stable
    * `metadata`: the facts of the message by name
    * `fields`: `{path, what is wrong with it}` of the request's bad fields
    * `retry_delay`: seconds after which the same call may succeed; nil: no promise

  Services answer `{:error, error}`; where a value is being computed, or a stream is being read, it is raised.
  """

  alias Crucible.Proto

  defexception [:code, :message, :reason, metadata: %{}, fields: [], retry_delay: nil]

  @type code :: atom
  @type t :: %__MODULE__{
          code: code,
          message: String.t(),
          reason: String.t(),
          metadata: %{String.t() => String.t()},
          fields: [{String.t(), String.t()}],
          retry_delay: number | nil
        }

  @codes %{
    cancelled: 1,
    unknown: 2,
    invalid_argument: 3,
    deadline_exceeded: 4,
    not_found: 5,
    already_exists: 6,
    permission_denied: 7,
    resource_exhausted: 8,
    failed_precondition: 9,
    aborted: 10,
    out_of_range: 11,
    unimplemented: 12,
    internal: 13,
    unavailable: 14,
    data_loss: 15,
    unauthenticated: 16
  }
  @domain "crucible.kitchen"
  @max_message 2000
  @max_metadata 16
  @max_fields 5
  # Message and details travel as headers, and a receiver may drop more than 8 KiB of them, the status with it.
  @max_wire_bytes 7 * 1024

  @doc "An error of a code and a reason; options are the other fields, metadata of any values."
  @spec new(code, String.t(), String.t(), keyword) :: t
  def new(code, reason, message, options \\ []) when is_map_key(@codes, code) do
    metadata =
      for {k, v} <- options[:metadata] || %{}, into: %{}, do: {to_string(k), to_string(v)}

    %__MODULE__{
      code: code,
      reason: reason,
      message: message,
      metadata: metadata,
      fields: options[:fields] || [],
      retry_delay: options[:retry_delay]
    }
  end

  @doc "An INVALID_ARGUMENT about one field."
  @spec field(String.t(), String.t(), String.t()) :: t
  def field(path, description, reason \\ "FIELD_INVALID") do
    new(:invalid_argument, reason, "#{path}: #{description}",
      metadata: %{field: path},
      fields: [{path, description}]
    )
  end

  @doc "The UNIMPLEMENTED of an optional behaviour that this adapter does not declare."
  @spec capability_missing(String.t(), String.t(), String.t()) :: t
  def capability_missing(port, capability, fix) do
    new(
      :unimplemented,
      "CAPABILITY_MISSING",
      "the #{port} adapter does not declare the capability #{capability}: #{fix}",
      metadata: %{port: port, capability: capability}
    )
  end

  @doc "The INTERNAL of a defect: tells nothing of the exception but where to look, under its error_id in the log."
  @spec hidden(String.t(), Exception.kind(), term, Exception.stacktrace()) :: t
  def hidden(where, kind, value, stacktrace) do
    require Logger
    error_id = Base.encode16(:crypto.strong_rand_bytes(6), case: :lower)

    Logger.error(
      "#{where} failed, error_id #{error_id}: #{Exception.format(kind, value, stacktrace)}"
    )

    new(
      :internal,
      "INTERNAL_BUG",
      "internal error #{error_id}: the adapter's log has the details",
      metadata: %{error_id: error_id}
    )
  end

  @doc "gRPC's number of the error's code."
  @spec number(t) :: 1..16
  def number(error), do: Map.fetch!(@codes, error.code)

  @doc "Whether the same call may succeed unchanged."
  @spec retryable?(t) :: boolean
  def retryable?(error), do: error.code == :unavailable or error.retry_delay != nil

  @doc "The google.rpc.Status, its texts cut until the whole fits into headers."
  @spec to_status(t, pos_integer) :: Proto.message()
  def to_status(error, divisor \\ 1) do
    status = build_status(error, divisor)

    if wire_bytes(status) > @max_wire_bytes and divisor < @max_message,
      do: to_status(error, divisor * 2),
      else: status
  end

  @doc "The error as data, for operations. `source` is the full name of the service."
  @spec to_failure(t, String.t()) :: Proto.message()
  def to_failure(error, source) do
    Proto.new("crucible.type.v1.Failure", %{
      status: to_status(error),
      reason: error.reason,
      source: source,
      retryable: retryable?(error),
      retry_delay: error.retry_delay && duration(error.retry_delay)
    })
  end

  @doc "So many of a text's first characters: code points, whatever they look like."
  @spec first(String.t(), non_neg_integer) :: String.t()
  def first(<<character::utf8, rest::binary>>, count) when count > 0,
    do: <<character::utf8, first(rest, count - 1)::binary>>

  def first(_, _), do: ""

  @doc "A google.protobuf.Duration of so many seconds."
  @spec duration(number) :: Proto.message()
  def duration(seconds) do
    nanos = round(seconds * 1_000_000_000)
    %{seconds: div(nanos, 1_000_000_000), nanos: rem(nanos, 1_000_000_000)}
  end

  defp build_status(error, divisor) do
    metadata =
      for {key, value} <- error.metadata |> Enum.sort() |> Enum.take(@max_metadata),
          into: %{},
          do: {first(key, 64), cut(value, 256, divisor)}

    info = %{reason: first(error.reason, 64), domain: @domain, metadata: metadata}

    violations =
      for {path, description} <- Enum.take(error.fields, @max_fields),
          do: %{field: cut(path, 256, divisor), description: cut(description, 512, divisor)}

    details =
      [any("google.rpc.ErrorInfo", info)] ++
        if(violations == [],
          do: [],
          else: [any("google.rpc.BadRequest", %{field_violations: violations})]
        ) ++
        if(error.retry_delay == nil,
          do: [],
          else: [any("google.rpc.RetryInfo", %{retry_delay: duration(error.retry_delay)})]
        )

    %{code: number(error), message: cut(error.message, @max_message, divisor), details: details}
  end

  defp any(type, message),
    do: %{type_url: "type.googleapis.com/#{type}", value: Proto.encode(type, message)}

  defp cut(text, limit, divisor) do
    most = max(1, div(limit, divisor))
    if first(text, most) == text, do: text, else: first(text, most - 1) <> "…"
  end

  # The message percent-encoded, the whole status in base64.
  defp wire_bytes(status) do
    byte_size(URI.encode(status.message, &(&1 in 0x20..0x7E and &1 != ?%))) +
      div(byte_size(Proto.encode("google.rpc.Status", status)) * 4, 3)
  end
end
