"""The client: one method for each call of the kitchen's API."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import struct_pb2

from crucible.kitchen.v1 import (
    adapter_admin_pb2,
    adapter_admin_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    event_pb2,
    run_pb2,
    run_pb2_grpc,
)
from crucible_client.fold import ENDED_STATES
from crucible_client.tls import credentials
from crucible_client.watch import Backoff, WatchPolicy, may_heal, watch_events
from crucible_kit.channel import Channel, connect
from crucible_kit.errors import KitchenError, field_error
from crucible_kit.ports import PORTS

# A WaitRun holds its answer back for so long; the server allows no more.
_WAIT_SECONDS = 60
# An adapter that has to be started first answers late: loading a large library takes its time.
_PROBE_TIMEOUT = 200.0


class KitchenClient:
    """A kitchen's API with typed arguments; answers are the contract's own messages.

    Every method raises KitchenError subclasses with code, reason, message and fields. Calls that change something carry
    a request id that is chosen once, so trying again changes nothing twice. Close it, or use it as a context manager.

    Args:
        channel: to the kitchen; closed with the client.
        timeout: seconds that an ordinary call may take.
        policy: when watches and waits resume and give up.
    """

    def __init__(self, channel: Channel, *, timeout: float = 60.0, policy: WatchPolicy | None = None) -> None:
        self._channel = channel
        self._timeout = timeout
        self._policy = policy or WatchPolicy()
        self._runs = run_pb2_grpc.RunServiceStub(channel)  # type: ignore[arg-type]
        self._catalog = catalog_pb2_grpc.CatalogServiceStub(channel)  # type: ignore[arg-type]
        self._adapters = adapter_admin_pb2_grpc.AdapterAdminServiceStub(channel)  # type: ignore[arg-type]

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        token: str = "",
        tls: bool = False,
        ca_cert: Path | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
        timeout: float = 60.0,
        policy: WatchPolicy | None = None,
    ) -> KitchenClient:
        """A client of host:port or unix:PATH. Connects when first used, so a missing server shows in the first call.

        Args:
            token: bearer token; empty sends none.
            tls: encrypt; files below do too. Otherwise everything, the token too, travels in the clear.
            ca_cert: PEM of the authorities that the server's certificate is checked with; None: the system's.
            client_cert, client_key: PEM of the client's own certificate, for servers that ask for one.
            timeout, policy: as in the constructor.
        """
        secure = None
        if tls or ca_cert is not None or client_cert is not None or client_key is not None:
            secure = credentials(ca_cert=ca_cert, client_cert=client_cert, client_key=client_key)
        channel = connect(address, credentials=secure, token=token, wait_for_ready=False)
        return cls(channel, timeout=timeout, policy=policy)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def __aenter__(self) -> KitchenClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Runs

    async def create_run(
        self,
        recipe: str,
        *,
        preset: str = "",
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        run_id: str = "",
        labels: Mapping[str, str] | None = None,
        hold: bool = False,
        validate_only: bool = False,
        request_id: str = "",
    ) -> run_pb2.Run:
        """Creates a run and queues it, unless `hold`. `config` holds JSON values by key; see get_recipe."""
        request = run_pb2.CreateRunRequest(
            request_id=request_id or str(uuid.uuid4()),
            run_id=run_id,
            recipe=recipe,
            preset=preset,
            config=_struct("config", config or {}),
            seed=seed,
            labels=labels,
            hold=hold,
            validate_only=validate_only,
        )
        return (await self._runs.CreateRun(request, timeout=self._timeout)).run

    async def start_run(self, run_id: str, *, request_id: str = "") -> run_pb2.Run:
        """Queues a run that was created with `hold`."""
        request = run_pb2.StartRunRequest(run_id=run_id, request_id=request_id or str(uuid.uuid4()))
        return (await self._runs.StartRun(request, timeout=self._timeout)).run

    async def pause_run(self, run_id: str) -> run_pb2.Run:
        """Asks a run to stop at its next checkpoint; it is PAUSED when it has."""
        return (await self._runs.PauseRun(run_pb2.PauseRunRequest(run_id=run_id), timeout=self._timeout)).run

    async def resume_run(self, run_id: str, *, request_id: str = "") -> run_pb2.Run:
        """Queues the next attempt of a run that is PAUSED, FAILED or CANCELLED."""
        request = run_pb2.ResumeRunRequest(run_id=run_id, request_id=request_id or str(uuid.uuid4()))
        return (await self._runs.ResumeRun(request, timeout=self._timeout)).run

    async def cancel_run(self, run_id: str, *, reason: str = "") -> run_pb2.Run:
        """Asks a run to stop for good."""
        request = run_pb2.CancelRunRequest(run_id=run_id, reason=reason)
        return (await self._runs.CancelRun(request, timeout=self._timeout)).run

    async def get_run(self, run_id: str) -> run_pb2.Run:
        """One run."""
        return (await self._runs.GetRun(run_pb2.GetRunRequest(run_id=run_id), timeout=self._timeout)).run

    async def list_runs(
        self,
        *,
        page_size: int = 0,
        page_token: str = "",
        states: Iterable[event_pb2.RunState] = (),
        recipe: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> run_pb2.ListRunsResponse:
        """A page of runs, newest first."""
        request = run_pb2.ListRunsRequest(
            page_size=page_size, page_token=page_token, states=states, recipe=recipe, labels=labels
        )
        return await self._runs.ListRuns(request, timeout=self._timeout)

    async def wait_run(self, run_id: str, *, wait: float | None = None) -> run_pb2.Run:
        """The run when it has ended or is paused, or as it is after `wait` seconds (at most 60; None: 30)."""
        request = run_pb2.WaitRunRequest(run_id=run_id)
        if wait is not None:
            request.wait.FromNanoseconds(int(wait * 1e9))
        return (await self._runs.WaitRun(request, timeout=self._timeout + (30 if wait is None else wait))).run

    async def list_run_events(
        self, run_id: str, *, after_sequence: int = 0, page_size: int = 0
    ) -> list[event_pb2.RunEvent]:
        """A page of a run's events, oldest first; fewer than page_size (0: 50): these were the last."""
        request = run_pb2.ListRunEventsRequest(run_id=run_id, after_sequence=after_sequence, page_size=page_size)
        return list((await self._runs.ListRunEvents(request, timeout=self._timeout)).events)

    def watch(
        self, run_id: str, after_sequence: int = 0, *, max_batch: int = 0
    ) -> AsyncGenerator[event_pb2.RunEvent, None]:
        """A run's events after a sequence number: first those in the log, then new ones, in order, each once.

        Ends when the run has ended; a paused run's watch goes on. Streams that break, fall silent or meet a server that
        is shutting down are resumed after the last event, for as long as the policy is patient.

        Raises:
            OutOfRangeError: SEQUENCE_OUT_OF_RANGE, after_sequence is past the log's end.
            DataLossError: EVENT_GAP.
            KitchenError: as any call.
        """

        def open_stream(last: int) -> Any:
            request = run_pb2.WatchRunRequest(run_id=run_id, after_sequence=last, max_batch=max_batch)
            return self._runs.WatchRun(request)

        return watch_events(open_stream, after_sequence, self._policy)

    async def wait(self, run_id: str) -> run_pb2.Run:
        """The run when it has ended or is paused, however long that takes; survives a server that restarts."""
        backoff = Backoff(self._policy)
        while True:
            try:
                run = await self.wait_run(run_id, wait=_WAIT_SECONDS)
            except KitchenError as error:
                if not may_heal(error):
                    raise
                await backoff.wait(error)
                continue
            if run.state in ENDED_STATES or run.state == event_pb2.RUN_STATE_PAUSED:
                return run
            backoff.reset()

    # Catalog

    async def list_recipes(self) -> list[catalog_pb2.Recipe]:
        """The recipes without their schemas."""
        return list((await self._catalog.ListRecipes(catalog_pb2.ListRecipesRequest(), timeout=self._timeout)).recipes)

    async def get_recipe(self, name: str) -> catalog_pb2.Recipe:
        """A recipe with the JSON Schema of its configuration."""
        return (await self._catalog.GetRecipe(catalog_pb2.GetRecipeRequest(name=name), timeout=self._timeout)).recipe

    async def list_workflows(self) -> list[catalog_pb2.Workflow]:
        """The workflows."""
        request = catalog_pb2.ListWorkflowsRequest()
        return list((await self._catalog.ListWorkflows(request, timeout=self._timeout)).workflows)

    async def get_workflow(self, name: str) -> catalog_pb2.Workflow:
        """A workflow's tree."""
        request = catalog_pb2.GetWorkflowRequest(name=name)
        return (await self._catalog.GetWorkflow(request, timeout=self._timeout)).workflow

    async def list_stages(self) -> list[catalog_pb2.Stage]:
        """The stages."""
        return list((await self._catalog.ListStages(catalog_pb2.ListStagesRequest(), timeout=self._timeout)).stages)

    async def list_metric_definitions(self) -> list[catalog_pb2.MetricDefinition]:
        """Every metric that the server records, with its unit."""
        request = catalog_pb2.ListMetricDefinitionsRequest()
        return list((await self._catalog.ListMetricDefinitions(request, timeout=self._timeout)).metrics)

    # Ports

    def port(self, name: str) -> Any:
        """The stub of a port's service, re-exported by the kitchen: training, sampling, tokenizer, dataset, hub, blob,
        metrics or registry. Its calls take the contract's requests and `timeout` in seconds (unary ones: 60).
        """
        return PORTS[name].stub(self._channel)

    # Adapters

    async def list_adapters(self) -> list[adapter_admin_pb2.Adapter]:
        """The ports with the adapters that serve them."""
        request = adapter_admin_pb2.ListAdaptersRequest()
        return list((await self._adapters.ListAdapters(request, timeout=self._timeout)).adapters)

    async def probe_adapter(self, port: str) -> adapter_admin_pb2.Adapter:
        """A port's adapter, asked whether it can serve; starts it if it does not run."""
        request = adapter_admin_pb2.ProbeAdapterRequest(port=port)
        return (await self._adapters.ProbeAdapter(request, timeout=max(self._timeout, _PROBE_TIMEOUT))).adapter

    async def add_adapter(
        self,
        port: str,
        adapter: str = "",
        *,
        command: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        secrets: Mapping[str, str] | None = None,
        tls: Mapping[str, str] | None = None,
        token_env: str = "",
        wait_seconds: float | None = None,
        insecure: bool = False,
        validate_only: bool = False,
        force: bool = False,
    ) -> adapter_admin_pb2.Adapter | None:
        """Maps a port to an adapter; the adapter that serves it now, None for none (with `validate_only`).

        Args:
            adapter, command, options, secrets, token_env, wait_seconds, insecure: as in a manifest. `secrets` holds
                names of the server's environment variables, never values.
            tls: ca, cert and key, absolute paths on the server's machine, and server_name; {}: the system's
                authorities. None: plain text.
            force: also when the port is in use: sessions are lost, runs go on from their last checkpoints.
        """
        mapping = adapter_admin_pb2.AdapterMapping(
            adapter=adapter,
            command=command,
            options=_struct("mapping.options", options) if options else None,
            secrets=secrets,
            tls=None if tls is None else adapter_admin_pb2.AdapterTls(**tls),
            token_env=token_env,
            wait_seconds=wait_seconds,
            insecure=insecure,
        )
        request = adapter_admin_pb2.AddAdapterRequest(
            port=port, mapping=mapping, validate_only=validate_only, force=force
        )
        response = await self._adapters.AddAdapter(request, timeout=max(self._timeout, _PROBE_TIMEOUT))
        return response.adapter if response.HasField("adapter") else None

    async def remove_adapter(self, port: str, *, force: bool = False) -> adapter_admin_pb2.Adapter | None:
        """Takes back what add_adapter did; the adapter that serves the port now, None for none."""
        request = adapter_admin_pb2.RemoveAdapterRequest(port=port, force=force)
        response = await self._adapters.RemoveAdapter(request, timeout=max(self._timeout, _PROBE_TIMEOUT))
        return response.adapter if response.HasField("adapter") else None


def _struct(field: str, values: Mapping[str, Any]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    for key, value in values.items():
        try:
            struct[key] = value
        except (TypeError, ValueError) as error:
            problem = f"{value!r} is not a JSON value: use text, numbers, booleans, lists and objects"
            raise field_error(f"{field}.{key}", problem, reason="CONFIG_INVALID") from error
    return struct
