defmodule Crucible.Adapter do
  @moduledoc "AdapterService: what the adapter is, and whether it serves. It has no settings, and says so to Configure."

  use Agent

  alias Crucible.Error
  alias Crucible.Grpc.Server
  alias Crucible.Proto.Schema

  @version "0.1.0"
  @contract_versions [1]
  @ports %{
    "sampling" => "crucible.port.sampling.v1.SamplingService",
    "training" => "crucible.port.training.v1.TrainingService"
  }

  @doc "The adapter's version."
  def version, do: @version

  @doc "The modules that serve, by the full names of their services."
  def services do
    %{
      "crucible.adapter.v1.AdapterService" => __MODULE__,
      @ports["sampling"] => Crucible.Sampling,
      @ports["training"] => Crucible.Training
    }
  end

  @doc "Keeps what one start of the adapter has: its instance's id, and the settings' generations."
  def start_link(_) do
    id = Base.encode16(:crypto.strong_rand_bytes(16), case: :lower)
    Agent.start_link(fn -> %{instance_id: id, generations: %{}} end, name: __MODULE__)
  end

  def get_adapter_info(request, %{config: config}) do
    if Enum.any?(request.host_contract_versions, &(&1 in @contract_versions)) do
      {:ok,
       %{
         name: config.name,
         version: @version,
         language: "elixir",
         contract_versions: @contract_versions,
         ports: for({port, service} <- Enum.sort(@ports), do: support(port, service, config)),
         instance_id: Agent.get(__MODULE__, & &1.instance_id),
         max_message_bytes: Server.max_message_bytes()
       }}
    else
      text =
        "no common contract version: the host speaks #{inspect(request.host_contract_versions, charlists: :as_lists)}, " <>
          "#{config.name} speaks #{inspect(@contract_versions, charlists: :as_lists)}: update the older side"

      {:error, Error.new(:failed_precondition, "CONTRACT_VERSION_UNSUPPORTED", text)}
    end
  end

  defp support(port, service, config) do
    %{
      service: service,
      descriptor_sha256: Schema.descriptor_sha256(service),
      capabilities: Enum.sort(config.model.capabilities()[port])
    }
  end

  def configure(request, %{config: config}) do
    settings = if request.settings, do: Map.keys(request.settings.fields), else: []

    cond do
      request.service not in Map.values(@ports) ->
        {:error,
         Error.field("service", "#{inspect(request.service)} is not served by #{config.name}")}

      settings != [] ->
        {:error,
         Error.field("settings.#{hd(settings)}", "unknown key: #{config.name} has no settings")}

      request.secrets != %{} ->
        {:error, Error.field("secrets", "#{config.name} takes none")}

      true ->
        bind({request.instance, request.service}, request.generation)
    end
  end

  defp bind(key, generation) do
    Agent.get_and_update(__MODULE__, fn state ->
      in_force = Map.get(state.generations, key, 0)

      if generation < in_force do
        text = "generation: #{generation} came after #{in_force}: send newer settings"
        {{:error, Error.new(:failed_precondition, "STALE_GENERATION", text)}, state}
      else
        {{:ok, %{}}, put_in(state.generations[key], generation)}
      end
    end)
  end

  def probe(_, _), do: {:ok, %{state: :STATE_READY}}
end
