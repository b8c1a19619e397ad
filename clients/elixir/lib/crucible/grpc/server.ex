defmodule Crucible.Grpc.Server do
  @moduledoc """
  Calls of services, whatever carries them: bytes to message, checks, the service's function, and back.

  A service is a module with one function a method, named in snake case:

    * `rpc(request, context) :: {:ok, response} | {:error, Crucible.Error}` for unary methods,
    * the same with an enumerable of requests for client streams,
    * `{:ok, enumerable of responses}` for server streams.

  Requests are checked before it sees them. An error may also be raised, in a stream's middle too. A method without a
  function is UNIMPLEMENTED METHOD_MISSING.
  """

  alias Crucible.{Constraints, Error, Proto}
  alias Crucible.Proto.Schema

  @max_message_bytes 32 * 1024 * 1024

  @enforce_keys [:methods, :config]
  defstruct [:methods, :config]

  @type t :: %__MODULE__{methods: %{String.t() => method}, config: term}
  @type method :: %{
          path: String.t(),
          module: module,
          function: atom,
          request: Schema.name(),
          response: Schema.name(),
          kind: Schema.kind()
        }
  @type context :: %{config: term, metadata: %{String.t() => String.t()}}
  @type outcome :: %{status: 0..16, message: String.t(), trailers: %{String.t() => String.t()}}

  @doc "The largest message that is received, in bytes."
  @spec max_message_bytes() :: pos_integer
  def max_message_bytes, do: @max_message_bytes

  @doc "A server of services by full name; every call's context has `config`."
  @spec new(%{Schema.name() => module}, term) :: t
  def new(services, config) do
    methods =
      for {service, module} <- services,
          {name, request, response, kind} <- Schema.methods(service) do
        Code.ensure_loaded!(module)
        path = "/#{service}/#{name}"
        function = name |> Macro.underscore() |> String.to_atom()

        {path,
         %{
           path: path,
           module: module,
           function: function,
           request: request,
           response: response,
           kind: kind
         }}
      end

    %__MODULE__{methods: Map.new(methods), config: config}
  end

  @doc "The method of a path such as /crucible.adapter.v1.AdapterService/Probe."
  @spec find(t, String.t()) :: {:ok, method} | {:error, outcome}
  def find(server, path) do
    with {:ok, method} <- Map.fetch(server.methods, path),
         true <- function_exported?(method.module, method.function, 2) do
      {:ok, method}
    else
      _ ->
        error =
          Error.new(:unimplemented, "METHOD_MISSING", "#{path}: nobody serves it here",
            metadata: %{method: path}
          )

        {:error, failed(error)}
    end
  end

  @doc """
  Runs a call in the calling process; `send` sends one response. Never raises.

  `messages` holds the requests' bytes; one that raises `Crucible.Error` ends the call with it.
  """
  @spec call(t, method, Enumerable.t(), map, (binary -> any)) :: outcome
  def call(server, method, messages, metadata, send) do
    context = %{config: server.config, metadata: metadata}

    case apply(method.module, method.function, [requests(method, messages), context]) do
      {:ok, responses} when method.kind == :server_stream ->
        Enum.each(responses, &send.(Proto.encode(method.response, &1)))
        ok()

      {:ok, response} ->
        send.(Proto.encode(method.response, response))
        ok()

      {:error, %Error{} = error} ->
        failed(error)
    end
  rescue
    error in Error -> failed(error)
    error -> failed(Error.hidden(method.path, :error, error, __STACKTRACE__))
  catch
    kind, value -> failed(Error.hidden(method.path, kind, value, __STACKTRACE__))
  end

  @doc "The outcome that an error is."
  @spec failed(Error.t()) :: outcome
  def failed(error) do
    status = Error.to_status(error)

    %{
      status: Error.number(error),
      message: status.message,
      trailers: %{
        "grpc-status-details-bin" =>
          "google.rpc.Status" |> Proto.encode(status) |> Base.encode64(padding: false),
        # For clients whose gRPC cannot read details.
        "crucible-reason" => String.replace(error.reason, ~r/[^\x21-\x7e]/, "?")
      }
    }
  end

  defp ok, do: %{status: 0, message: "", trailers: %{}}

  defp requests(%{kind: :client_stream} = method, messages),
    do: Stream.map(messages, &request!(method, &1))

  defp requests(method, messages) do
    case Enum.take(messages, 2) do
      [data] ->
        request!(method, data)

      data ->
        raise Error.new(
                :invalid_argument,
                "MESSAGE_MALFORMED",
                "#{method.path} takes one message, got #{if data == [], do: "none", else: "more"}"
              )
    end
  end

  defp request!(method, data) do
    with {:ok, request} <- Proto.decode(method.request, data),
         # First what bounds how much there is to look at.
         :ok <- Constraints.check(method.request, request),
         :ok <- Constraints.check_unknown(method.request, request) do
      request
    else
      {:error, :malformed} ->
        text = "the request of #{method.path} is not a valid protobuf message"
        raise Error.new(:invalid_argument, "MESSAGE_MALFORMED", text)

      {:error, :too_complex} ->
        most = Proto.max_messages()

        text =
          "the request of #{method.path} holds more than #{most} messages: send it in several calls"

        raise Error.new(:invalid_argument, "MESSAGE_TOO_COMPLEX", text,
                metadata: %{max_messages: most}
              )

      {:error, error} ->
        raise error
    end
  end
end
