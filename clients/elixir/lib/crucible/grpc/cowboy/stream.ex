defmodule Crucible.Grpc.Cowboy.Stream do
  @moduledoc """
  One gRPC call: what cowboy's connection process keeps of it, and the process that computes its answer.

  The connection cuts the body into messages and hands them to the call's process as that asks for them; the window opens
  again as it does, so a slow reader slows its sender. A response waits while cowboy's buffer of the stream is full.
  RST_STREAM, a lost connection and the deadline end the process.
  """

  @behaviour :cowboy_stream

  alias Crucible.Error
  alias Crucible.Grpc.Server

  @window 1_048_576
  @max_timer 4_294_967_295
  @headers %{"content-type" => "application/grpc+proto", "grpc-accept-encoding" => "identity"}

  defstruct [
    :id,
    :path,
    :worker,
    :timer,
    # Who waits for a message, and who for room to send.
    :reader,
    :writer,
    # The body's bytes behind the messages that are whole, in reverse; how many, and how many are worth a look.
    parts: [],
    size: 0,
    needed: 5,
    # Whole messages that nobody has asked for yet, and the bytes for which the window is still closed.
    messages: :queue.new(),
    held: 0,
    ended: false,
    begun: false,
    full: false,
    answered: false
  ]

  @impl true
  def init(id, request, options) do
    state = %__MODULE__{id: id, path: request.path, ended: not request.has_body}

    with :ok <- check_grpc(request),
         {:ok, timeout} <- timeout(request.headers["grpc-timeout"]),
         {:ok, method} <- Server.find(options.grpc_server, request.path) do
      worker = start_worker(id, options.grpc_server, method, request.headers)
      timer = timeout && Process.send_after(self(), {{self(), id}, :deadline}, timeout)
      {[{:spawn, worker, 1_000}, {:flow, @window}], %{state | worker: worker, timer: timer}}
    else
      {:error, outcome} -> finish(state, outcome)
      :not_grpc -> {[{:response, 415, %{}, ""}, :stop], %{state | answered: true}}
    end
  end

  @impl true
  def data(_, _, _, %{answered: true} = state), do: {[], state}

  def data(_, fin, data, state) do
    size = byte_size(data)

    state = %{
      state
      | parts: [data | state.parts],
        size: state.size + size,
        held: state.held + size,
        ended: fin == :fin
    }

    case cut(state) do
      {:ok, state} -> hand_over(state)
      {:error, error} -> finish(state, Server.failed(error))
    end
  end

  @impl true
  def info(_, _, %{answered: true} = state), do: {[], state}
  def info(_, {:read, from}, state), do: hand_over(%{state | reader: from})

  def info(_, {:write, from, data}, state) do
    unless state.full, do: reply(from, :sent)
    state = %{state | writer: if(state.full, do: from)}
    {begin(state) ++ [{:data, :nofin, data}], %{state | begun: true}}
  end

  def info(_, {:alarm, _, :on}, state), do: {[], %{state | full: true}}

  def info(_, {:alarm, _, :off}, state) do
    if state.writer, do: reply(state.writer, :sent)
    {[], %{state | full: false, writer: nil}}
  end

  def info(_, {:outcome, outcome}, state), do: finish(state, outcome)

  def info(_, :deadline, state) do
    Process.exit(state.worker, :kill)

    error =
      Error.new(
        :deadline_exceeded,
        "DEADLINE_EXCEEDED",
        "#{state.path} did not answer before its deadline: set one that fits",
        metadata: %{method: state.path}
      )

    finish(state, Server.failed(error))
  end

  def info(_, {:EXIT, pid, reason}, %{worker: pid} = state),
    do: finish(state, Server.failed(Error.hidden(state.path, :exit, reason, [])))

  def info(_, _, state), do: {[], state}

  @impl true
  def terminate(_, _, state) do
    if state.timer, do: Process.cancel_timer(state.timer)
    :ok
  end

  @impl true
  def early_error(_, _, _, response, _), do: response

  # The call's own process

  defp start_worker(id, server, method, metadata) do
    connection = {self(), id}

    :proc_lib.spawn_link(fn ->
      messages = Stream.unfold(:more, fn :more -> read(connection) end)

      outcome =
        Server.call(server, method, messages, metadata, &ask(connection, :write, framed(&1)))

      if method.kind == :client_stream, do: drain(connection)
      send(elem(connection, 0), {connection, {:outcome, outcome}})
    end)
  end

  # gRPC's clients lose the status of a call that ends while they still write.
  defp drain(connection) do
    with {:message, _} <- ask(connection, :read), do: drain(connection)
  end

  defp read(connection) do
    case ask(connection, :read) do
      {:message, data} -> {data, :more}
      :end -> nil
      :cut_off -> raise malformed("the request ends in the middle of a message")
    end
  end

  defp ask({pid, _} = connection, what, data \\ nil) do
    from = {self(), make_ref()}
    send(pid, {connection, if(data, do: {what, from, data}, else: {what, from})})

    # The connection and this process are linked: one does not outlive the other.
    receive do
      {ref, answer} when ref == elem(from, 1) -> answer
    end
  end

  defp reply({pid, ref}, answer), do: send(pid, {ref, answer})

  defp framed(data), do: [<<0, byte_size(data)::32>>, data]

  # The connection's side of it

  defp begin(%{begun: true}), do: []
  defp begin(_), do: [{:headers, 200, @headers}]

  defp finish(state, outcome) do
    trailers =
      Map.merge(outcome.trailers, %{
        "grpc-status" => Integer.to_string(outcome.status),
        "grpc-message" => URI.encode(outcome.message, &(&1 in 0x20..0x7E and &1 != ?%))
      })

    {begin(state) ++ [{:trailers, trailers}, :stop], %{state | answered: true}}
  end

  defp hand_over(%{reader: nil} = state), do: open_window(state)

  defp hand_over(state) do
    case :queue.out(state.messages) do
      {{:value, data}, messages} ->
        reply(state.reader, {:message, data})
        open_window(%{state | reader: nil, messages: messages})

      {:empty, _} when state.ended ->
        reply(state.reader, if(state.size == 0, do: :end, else: :cut_off))
        {[], %{state | reader: nil}}

      {:empty, _} ->
        open_window(state)
    end
  end

  # Only when no whole message waits: what is still to come is then the rest of the one that is asked for.
  defp open_window(state) do
    if state.held > 0 and not state.ended and :queue.is_empty(state.messages),
      do: {[{:flow, state.held}], %{state | held: 0}},
      else: {[], state}
  end

  defp cut(%{size: size, needed: needed} = state) when size < needed, do: {:ok, state}

  defp cut(state) do
    most = Server.max_message_bytes()

    case state.parts |> Enum.reverse() |> IO.iodata_to_binary() do
      <<0, size::32, _::binary>> when size > most ->
        text =
          "a request of #{state.path} has #{size} bytes, at most #{most} are allowed: send less in one message"

        {:error,
         Error.new(:invalid_argument, "MESSAGE_TOO_LARGE", text,
           metadata: %{size_bytes: size, max_bytes: most}
         )}

      <<0, size::32, message::binary-size(size), rest::binary>> ->
        messages = :queue.in(:binary.copy(message), state.messages)
        cut(%{state | messages: messages, parts: [rest], size: byte_size(rest), needed: 5})

      <<0, size::32, _::binary>> = data ->
        {:ok, %{state | parts: [data], needed: size + 5}}

      _ ->
        text = "#{state.path}: compressed messages are not taken here: send them as they are"
        {:error, Error.new(:unimplemented, "COMPRESSION_UNSUPPORTED", text)}
    end
  end

  defp check_grpc(%{method: "POST", headers: %{"content-type" => "application/grpc" <> _}}),
    do: :ok

  defp check_grpc(_), do: :not_grpc

  defp timeout(nil), do: {:ok, nil}

  defp timeout(text) do
    with {value, unit} when value >= 0 <- Integer.parse(text),
         {:ok, nanoseconds} <- unit(unit) do
      {:ok, min(div(value * nanoseconds + 999_999, 1_000_000), @max_timer)}
    else
      _ -> {:error, Server.failed(malformed("grpc-timeout #{inspect(text)} is none"))}
    end
  end

  defp unit("n"), do: {:ok, 1}
  defp unit("u"), do: {:ok, 1_000}
  defp unit("m"), do: {:ok, 1_000_000}
  defp unit("S"), do: {:ok, 1_000_000_000}
  defp unit("M"), do: {:ok, 60_000_000_000}
  defp unit("H"), do: {:ok, 3_600_000_000_000}
  defp unit(_), do: :error

  defp malformed(text), do: Error.new(:invalid_argument, "MESSAGE_MALFORMED", text)
end
