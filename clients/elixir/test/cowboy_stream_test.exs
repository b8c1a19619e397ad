defmodule Crucible.Grpc.Cowboy.StreamTest do
  # The test's process is the connection: it calls what cowboy calls, and gets what the call's process sends.
  use ExUnit.Case, async: true
  alias Crucible.{Error, Proto}
  alias Crucible.Grpc.Cowboy.Stream, as: Call
  alias Crucible.Grpc.Server

  @training "crucible.port.training.v1.TrainingService"
  @adapter "crucible.adapter.v1.AdapterService"

  defmodule Adapter do
    def probe(%{instance: "slow"}, _), do: Process.sleep(:infinity)
    def probe(%{instance: "bug"}, _), do: raise("secret detail")
    def probe(_, %{metadata: metadata}), do: {:ok, %{detail: metadata["crucible-instance"]}}
  end

  defmodule Training do
    def upload_checkpoint(requests, %{config: test}) do
      Enum.each(requests, fn %{part: {:chunk, chunk}} ->
        send(test, {:read, chunk.offset})
        receive do: (:on -> :ok)
      end)

      {:ok, %{}}
    end

    def read_checkpoint_file(_, _) do
      {:ok,
       Stream.map(0..3, fn n ->
         if n == 3,
           do: raise(Error.new(:data_loss, "CHUNK_CORRUPT", "bad ünd 100%")),
           else: %{offset: n + 1}
       end)}
    end
  end

  defp open(path, headers \\ %{}) do
    Process.flag(:trap_exit, true)
    server = Server.new(%{@training => Training, @adapter => Adapter}, self())
    headers = Map.merge(%{"content-type" => "application/grpc", "te" => "trailers"}, headers)
    request = %{method: "POST", path: path, headers: headers, has_body: true}
    Call.init(1, request, %{grpc_server: server})
  end

  defp framed(type, message) do
    data = Proto.encode(type, message)
    <<0, byte_size(data)::32, data::binary>>
  end

  # What the call's process has to say, until the call is answered: all commands for cowboy.
  defp run(state, commands \\ []) do
    if state.answered do
      commands
    else
      receive do
        {{_, 1}, message} ->
          {more, state} = Call.info(1, message, state)
          run(state, commands ++ more)
      after
        5_000 -> flunk("nothing came")
      end
    end
  end

  defp trailers(commands),
    do:
      Enum.find_value(commands, fn command ->
        match?({:trailers, _}, command) && elem(command, 1)
      end)

  defp probe(instance), do: framed("crucible.adapter.v1.ProbeRequest", %{instance: instance})

  test "a message in any pieces" do
    for sizes <- [[1, 1, 3, 2], [100], [4, 3]] do
      {[{:spawn, _, _}, {:flow, _}], state} =
        open("/#{@adapter}/Probe", %{"crucible-instance" => "a"})

      {rest, state} =
        Enum.reduce(sizes, {probe("default"), state}, fn size, {data, state} ->
          {piece, rest} = String.split_at(data, size)
          {_, state} = Call.data(1, :nofin, piece, state)
          {rest, state}
        end)

      {_, state} = Call.data(1, :fin, rest, state)
      commands = run(state)

      assert [
               {:headers, 200, _},
               {:data, :nofin, [<<0, 3::32>>, answer]},
               {:trailers, %{"grpc-status" => "0"}},
               :stop
             ] = Enum.reject(commands, &match?({:flow, _}, &1))

      assert {:ok, %{detail: "a"}} = Proto.decode("crucible.adapter.v1.ProbeResponse", answer)
    end
  end

  test "the deadline ends the call's process" do
    {[{:spawn, worker, _}, _], state} = open("/#{@adapter}/Probe", %{"grpc-timeout" => "20m"})
    {_, state} = Call.data(1, :fin, probe("slow"), state)

    assert %{"grpc-status" => "4", "crucible-reason" => "DEADLINE_EXCEEDED"} =
             state |> run() |> trailers()

    assert_receive {:EXIT, ^worker, :killed}
  end

  test "a defect says where to look and no more; an end by force too" do
    {_, state} = open("/#{@adapter}/Probe")
    {_, state} = Call.data(1, :fin, probe("bug"), state)

    assert %{
             "grpc-status" => "13",
             "crucible-reason" => "INTERNAL_BUG",
             "grpc-message" => message
           } = state |> run() |> trailers()

    refute message =~ "secret"
    {[{:spawn, worker, _}, _], state} = open("/#{@adapter}/Probe")
    {_, state} = Call.data(1, :fin, probe("slow"), state)
    Process.exit(worker, :kill)
    assert_receive {:EXIT, ^worker, :killed} = down
    {commands, _} = Call.info(1, down, state)
    assert %{"grpc-status" => "13"} = trailers(commands)
  end

  test "an error in the middle of a stream comes behind what was sent, with details for those who read them" do
    {_, state} = open("/#{@training}/ReadCheckpointFile")

    {_, state} =
      Call.data(
        1,
        :fin,
        framed("crucible.port.training.v1.ReadCheckpointFileRequest", %{uri: "u", path: "p"}),
        state
      )

    commands = run(state)
    assert length(for {:data, _, _} <- commands, do: :sent) == 3
    trailers = trailers(commands)

    assert %{
             "grpc-status" => "15",
             "grpc-message" => "bad %C3%BCnd 100%25",
             "crucible-reason" => "CHUNK_CORRUPT"
           } = trailers

    {:ok, status} =
      Proto.decode(
        "google.rpc.Status",
        Base.decode64!(trailers["grpc-status-details-bin"], padding: false)
      )

    assert {status.code, status.message} == {15, "bad ünd 100%"}
    assert [%{type_url: "type.googleapis.com/google.rpc.ErrorInfo", value: info}] = status.details

    assert {:ok, %{reason: "CHUNK_CORRUPT", domain: "crucible.kitchen"}} =
             Proto.decode("google.rpc.ErrorInfo", info)
  end

  test "responses wait while the stream's buffer is full" do
    {_, state} = open("/#{@training}/ReadCheckpointFile")

    {_, state} =
      Call.data(
        1,
        :fin,
        framed("crucible.port.training.v1.ReadCheckpointFileRequest", %{uri: "u", path: "p"}),
        state
      )

    {[], state} = Call.info(1, {:alarm, :stream_buffer_full, :on}, state)

    # It asks for the request, for another one that there is none of, and sends its first response.
    state = state |> take() |> take() |> take()
    wait_until_idle(state.worker)
    refute_received {{_, 1}, _}
    {[], state} = Call.info(1, {:alarm, :stream_buffer_full, :off}, state)
    assert %{"grpc-status" => "15"} = state |> run() |> trailers()
  end

  test "the window opens as messages are read" do
    {_, state} = open("/#{@training}/UploadCheckpoint")

    chunk = fn offset ->
      framed("crucible.port.training.v1.UploadCheckpointRequest", %{
        part: {:chunk, %{offset: offset}}
      })
    end

    # Two whole messages, of which nobody has asked for the second.
    two = chunk.(1) <> chunk.(2)
    {[], state} = Call.data(1, :nofin, two, state)
    state = take(state)
    assert_receive {:read, 1}
    {[], state} = Call.data(1, :nofin, chunk.(3), state)
    send(state.worker, :on)
    {[], state} = info(state)
    send(state.worker, :on)
    size = byte_size(two) + byte_size(chunk.(3))
    assert {[{:flow, ^size}], state} = info(state)
    send(state.worker, :on)
    {_, state} = info(state)
    {_, state} = Call.data(1, :fin, "", state)
    assert %{"grpc-status" => "0"} = state |> run() |> trailers()
  end

  # Handles the next message of the call's process.
  defp info(state) do
    assert_receive {{_, 1}, message}, 5_000
    Call.info(1, message, state)
  end

  defp take(state), do: state |> info() |> elem(1)

  defp wait_until_idle(pid) do
    if Process.info(pid, :status) != {:status, :waiting}, do: wait_until_idle(pid)
  end

  for {name, path, headers, body, status, reason} <- [
        {"no method", "/nobody/Knows", %{}, "", "12", "METHOD_MISSING"},
        {"a method without a function", "/#{@adapter}/Configure", %{}, "", "12",
         "METHOD_MISSING"},
        {"a timeout that is none", "/#{@adapter}/Probe", %{"grpc-timeout" => "soon"}, "", "3",
         "MESSAGE_MALFORMED"},
        {"compressed", "/#{@adapter}/Probe", %{}, <<1, 0::32>>, "12", "COMPRESSION_UNSUPPORTED"},
        {"too large", "/#{@adapter}/Probe", %{}, <<0, 0xFFFFFFFF::32>>, "3", "MESSAGE_TOO_LARGE"},
        {"cut off", "/#{@adapter}/Probe", %{}, <<0, 9::32, 1>>, "3", "MESSAGE_MALFORMED"},
        {"no message", "/#{@adapter}/Probe", %{}, "", "3", "MESSAGE_MALFORMED"},
        {"two messages", "/#{@adapter}/Probe", %{}, <<0, 0::32, 0, 0::32>>, "3",
         "MESSAGE_MALFORMED"},
        {"not protobuf", "/#{@adapter}/Probe", %{}, <<0, 1::32, 0>>, "3", "MESSAGE_MALFORMED"},
        {"a broken constraint", "/#{@adapter}/Probe", %{}, <<0, 3::32, 0x0A, 1, "A">>, "3",
         "FIELD_INVALID"}
      ] do
    test "refused: #{name}" do
      {commands, state} = open(unquote(path), unquote(Macro.escape(headers)))
      {more, state} = Call.data(1, :fin, unquote(body), state)
      commands = run(state, commands ++ more)

      assert %{"grpc-status" => unquote(status), "crucible-reason" => unquote(reason)} =
               trailers(commands)

      assert List.last(commands) == :stop
    end
  end

  test "what is not gRPC is told so in HTTP" do
    {commands, _} = open("/#{@adapter}/Probe", %{"content-type" => "application/json"})
    assert [{:response, 415, _, _}, :stop] = commands
  end
end
