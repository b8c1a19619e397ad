defmodule Crucible.Grpc.Cowboy do
  @moduledoc "gRPC over cowboy's HTTP/2, in plain text: for this machine only."

  @behaviour Crucible.Grpc.Transport

  alias Crucible.Grpc.Cowboy.Stream

  @impl true
  def child_spec({address, server}) do
    transport = %{
      socket_opts: socket(address) ++ [nodelay: true, buffer: 131_072, sndbuf: 262_144],
      num_acceptors: 4
    }

    protocol = %{
      protocols: [:http2],
      stream_handlers: [Stream],
      grpc_server: server,
      # A connection stays as long as its client wants: hosts call rarely, and poll for half a minute.
      idle_timeout: :infinity,
      inactivity_timeout: :infinity,
      # The limits against floods are for browsers: a busy client sends more, and cancels more.
      max_received_frame_rate: {10_000_000, 10_000},
      max_reset_stream_rate: {100_000, 10_000},
      max_stream_buffer_size: 1_048_576,
      # A message's bytes come without a round trip each 64 KiB.
      initial_connection_window_size: 8_388_608,
      initial_stream_window_size: 1_048_576
    }

    :ranch.child_spec(
      __MODULE__,
      :ranch_tcp,
      transport,
      :cowboy_clear,
      Map.put(protocol, :connection_type, :supervisor)
    )
    |> to_map()
  end

  @impl true
  def bound({:unix, path}), do: "unix:#{path}"
  def bound({:tcp, ip, _}), do: "#{host(ip)}:#{:ranch.get_port(__MODULE__)}"

  defp host(ip) when tuple_size(ip) == 8, do: "[#{:inet.ntoa(ip)}]"
  defp host(ip), do: to_string(:inet.ntoa(ip))

  defp socket({:tcp, ip, port}), do: [ip: ip, port: port]
  defp socket({:unix, path}), do: [ip: {:local, path}, port: 0]

  defp to_map({id, start, restart, shutdown, type, modules}),
    do: %{
      id: id,
      start: start,
      restart: restart,
      shutdown: shutdown,
      type: type,
      modules: modules
    }

  defp to_map(%{} = spec), do: spec
end
