"""All runs of a server: creates them, queues them, and executes them in turn."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

from google.protobuf import struct_pb2

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_kit.errors import (
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
    from_failure,
    to_failure,
)
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.recipes import RECIPES
from crucible_kitchen.recipes.recipe import config_sha256, find_recipe
from crucible_kitchen.runs.executor import RunExecutor
from crucible_kitchen.runs.metrics_feed import feed_stopped
from crucible_kitchen.runs.summary import stopped
from crucible_kitchen.runs.waiting import AdapterWatch, first_pause
from crucible_kitchen.stages import STAGES
from crucible_kitchen.store.records import TERMINAL_STATES, CheckpointRecord, RequestKey, RunRecord
from crucible_kitchen.store.store import Store
from crucible_kitchen.workflows.context import Ports, SubmitContext

logger = logging.getLogger(__name__)

CREATED, QUEUED, RUNNING = event_pb2.RUN_STATE_CREATED, event_pb2.RUN_STATE_QUEUED, event_pb2.RUN_STATE_RUNNING
PAUSED, CANCELLING = event_pb2.RUN_STATE_PAUSED, event_pb2.RUN_STATE_CANCELLING
COMPLETED = event_pb2.RUN_STATE_COMPLETED
FAILED, CANCELLED = event_pb2.RUN_STATE_FAILED, event_pb2.RUN_STATE_CANCELLED


class RunManager:
    """Creates and steers runs. Up to `max_concurrent_runs` execute at a time, the others wait in order."""

    def __init__(self, store: Store, ports: Ports, options: ServerOptions) -> None:
        self._store = store
        self._ports = ports
        self._options = options
        self._queue: list[str] = []
        self._executors: dict[str, RunExecutor] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Of each run whose mutation is under way or waits for one that is.
        self._mutating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._joining = 0
        self._mutations: set[asyncio.Task[RunRecord]] = set()
        self._draining = False
        self._feeding: asyncio.Task[None] | None = None
        self._unfed = False
        self._watch = AdapterWatch(ports, back=self._go_on, lost=self._give_up)
        # By run that waits or has waited: its checkpoint then, and how often it has come back with the same.
        self._waits: dict[str, tuple[CheckpointRecord | None, int]] = {}

    async def start(self, *, recover: bool) -> None:
        """Takes up what an earlier server left: RUNNING runs first, then the queue, and asks after the adapters that
        PAUSED runs wait for. Without `recover` they stay as they are.
        """
        self._feed()
        if not recover:
            return
        for record in await self._store.runs_in_states([CANCELLING]):
            await self._end_cancelling(record)
        for record in await self._store.runs_in_states([RUNNING]):
            logger.info("run %s was running and goes on", record.run_id)
            self._queue.append(record.run_id)
        self._queue.extend(record.run_id for record in await self._store.runs_in_states([QUEUED]))
        for record in await self._store.runs_in_states([PAUSED]):
            if record.waiting_for_port:
                await self._watch_for(record)
        self._schedule()

    async def _watch_for(self, record: RunRecord) -> None:
        """Has somebody ask after the adapter that a PAUSED run waits for."""
        checkpoint, returns = self._waits.get(record.run_id, (record.latest_checkpoint, -1))
        returns = returns + 1 if checkpoint == record.latest_checkpoint else 0
        self._waits[record.run_id] = (record.latest_checkpoint, returns)
        pause = first_pause(None if record.failure is None else from_failure(record.failure), returns)
        self._watch.add(record.run_id, record.waiting_for_port, await self._patience(record), pause=pause)

    async def _end_cancelling(self, record: RunRecord) -> None:
        """Ends a run that a server left behind while it was being cancelled."""
        # Once its model is registered, a cancellation is too late.
        changed = event_pb2.RunStateChanged(to_state=COMPLETED if record.model_version_id else CANCELLED)
        events, changes = await stopped(self._store, record.run_id, changed)
        await self._store.append(record.run_id, events, changes=changes, expect=[CANCELLING])

    def at_work(self) -> list[str]:
        """Ids of the runs that execute now, sorted."""
        return sorted(self._executors)

    async def create(self, request: run_pb2.CreateRunRequest) -> RunRecord:
        """Validates and stores a run, and queues it unless it is held."""
        key = _request_key(request, "CreateRun")
        if key is not None:
            seen = await self._store.request_seen(key)
            if seen is not None:
                return seen
        recipe = find_recipe(request.recipe, RECIPES)
        overrides = {key: _plain(value) for key, value in request.config.fields.items()}
        config = recipe.configure(request.preset, overrides)
        submit = SubmitContext(config=config, ports=self._ports, origins=recipe.origins(request.preset, overrides))
        for name in recipe.workflow.stage_names():
            await STAGES[name].validate(submit)
        seed = request.seed if request.HasField("seed") else 0
        record = RunRecord(
            run_id=request.run_id or f"run-{uuid.uuid4().hex[:12]}",
            recipe=recipe.name,
            preset=request.preset,
            workflow=recipe.workflow.name,
            dataset=str(config.get("dataset", "")),
            config=config,
            config_sha256=config_sha256(recipe.name, config, seed),
            seed=seed,
            state=CREATED,
            labels=dict(request.labels),
            create_time=datetime.now(UTC),
        )
        if request.validate_only:
            return record
        return await self._own(record.run_id, self._create(record, hold=request.hold, request=key))

    async def _create(self, record: RunRecord, *, hold: bool, request: RequestKey | None) -> RunRecord:
        events = [event_pb2.RunEvent(state_changed=event_pb2.RunStateChanged(to_state=CREATED))]
        if not hold:
            events.append(event_pb2.RunEvent(state_changed=event_pb2.RunStateChanged(to_state=QUEUED)))
            record = replace(record, state=QUEUED)
        with self._room():
            stored, created = await self._store.create_run(record, events, request=request)
            if created:
                self._enqueue(stored)
        return stored

    async def begin(self, run_id: str, request: run_pb2.StartRunRequest) -> RunRecord:
        """Queues a CREATED run."""
        return await self._own(run_id, self._queue_again(run_id, [CREATED], _request_key(request, "StartRun")))

    async def resume(self, run_id: str, request: run_pb2.ResumeRunRequest) -> RunRecord:
        """Queues the next attempt of a run that stopped."""
        expect = [PAUSED, FAILED, CANCELLED]
        if not self._options.recover and run_id not in self._executors and run_id not in self._queue:
            # An embedded server takes up no interrupted run by itself; asking for it does.
            expect += [RUNNING, QUEUED]
        return await self._own(run_id, self._queue_again(run_id, expect, _request_key(request, "ResumeRun")))

    async def _queue_again(
        self, run_id: str, expect: list[event_pb2.RunState], request: RequestKey | None
    ) -> RunRecord:
        with self._room():
            # A pause that a server did not live to obey is over, too.
            record = await self._change(
                run_id, QUEUED, expect=expect, request=request, end_time=None, pause_requested=False
            )
            self._enqueue(record)
        return record

    async def pause(self, run_id: str) -> RunRecord:
        """Asks a run to stop at a checkpoint."""
        return await self._own(run_id, self._pause(run_id))

    async def _pause(self, run_id: str) -> RunRecord:
        record = await self._store.get_run(run_id)
        if record.state == PAUSED and record.waiting_for_port:
            reason = f"it waits no more for the adapter of the port {record.waiting_for_port}"
            return await self._change(run_id, PAUSED, expect=[PAUSED], reason=reason)
        if record.state == PAUSED:
            return record
        executor = self._executors.get(run_id)
        if executor is None:
            self._forget(run_id)
            return await self._change(run_id, PAUSED, expect=[QUEUED])
        record = await self._store.append(run_id, [], changes={"pause_requested": True}, expect=[RUNNING, QUEUED])
        executor.control.pause = True
        return record

    async def cancel(self, run_id: str, reason: str) -> RunRecord:
        """Asks a run to stop for good."""
        return await self._own(run_id, self._cancel(run_id, reason))

    async def _cancel(self, run_id: str, reason: str) -> RunRecord:
        record = await self._store.get_run(run_id)
        if record.state in TERMINAL_STATES or record.state == CANCELLING:
            return record
        # The execution of a paused run is over, though it may still be tidying up.
        executor = self._executors.get(run_id) if record.state != PAUSED else None
        record = await self._change(run_id, CANCELLING, expect=[CREATED, QUEUED, RUNNING, PAUSED], reason=reason)
        if executor is not None:
            executor.control.cancel_reason = reason
            executor.control.cancel = True
            return record
        self._forget(run_id)
        return await self._change(run_id, CANCELLED, expect=[CANCELLING], reason=reason, end_time=datetime.now(UTC))

    async def _go_on(self, run_id: str) -> None:
        """Queues a run whose adapter is back."""
        await self._own(run_id, self._end_waiting(run_id))

    async def _end_waiting(self, run_id: str) -> RunRecord:
        record = await self._store.get_run(run_id)
        if record.waiting_for_port:
            # However full the queue is: it was let in once.
            reason = f"the adapter of the port {record.waiting_for_port} answers"
            record = await self._change(run_id, QUEUED, expect=[PAUSED], reason=reason)
            self._enqueue(record)
        return record

    async def _give_up(self, run_id: str) -> None:
        """Fails a run whose adapter has been away for too long."""
        await self._own(run_id, self._fail_waiting(run_id))

    async def _fail_waiting(self, run_id: str) -> RunRecord:
        record = await self._store.get_run(run_id)
        if not record.waiting_for_port:
            return record
        limit = self._options.max_adapter_wait_seconds
        error = FailedPreconditionError(
            f"the adapter of the port {record.waiting_for_port} has been away for {limit:g} s: resume the run when it "
            "is back",
            reason="ADAPTER_LOST",
            metadata={"port": record.waiting_for_port, "max_adapter_wait_seconds": limit},
        )
        failure = to_failure(error, source=run_id)
        changed = event_pb2.RunStateChanged(to_state=FAILED, reason=error.message, failure=failure)
        events, changes = await stopped(self._store, run_id, changed)
        return await self._store.append(run_id, events, changes={**changes, "failure": failure}, expect=[PAUSED])

    async def _patience(self, record: RunRecord) -> float:
        """Seconds for which a waiting run may go on waiting."""
        limit = self._options.max_adapter_wait_seconds
        if not limit:
            return math.inf
        # Nothing is written of a run while it waits.
        [paused] = await self._store.read_events(record.run_id, record.last_sequence - 1, limit=1)
        waited = (datetime.now(UTC) - paused.time.ToDatetime(UTC)).total_seconds()
        return limit - max(0.0, waited)

    async def _own(self, run_id: str, mutation: Coroutine[Any, Any, RunRecord]) -> RunRecord:
        """Finishes a mutation even when its caller hangs up between the commit and the queue; those of one run come
        one at a time.
        """

        async def alone() -> RunRecord:
            async with self._steering(run_id):
                return await mutation

        task = asyncio.create_task(alone())
        self._mutations.add(task)
        task.add_done_callback(self._mutated)
        return await asyncio.shield(task)

    def _steering(self, run_id: str) -> asyncio.Lock:
        """Held by whoever changes what is asked of a run."""
        return self._mutating.setdefault(run_id, asyncio.Lock())

    def _mutated(self, task: asyncio.Task[RunRecord]) -> None:
        self._mutations.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone

    async def drain(self, seconds: float) -> None:
        """Stops every run at its next checkpoint, leaving it RUNNING for the next server; after `seconds` where it
        stands.
        """
        self._draining = True
        self._queue.clear()
        for executor in self._executors.values():
            executor.control.drain = True
        await self._watch.close()
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)
        await asyncio.gather(*self._mutations, return_exceptions=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _change(
        self,
        run_id: str,
        state: event_pb2.RunState,
        *,
        expect: list[event_pb2.RunState],
        reason: str = "",
        request: RequestKey | None = None,
        **changes: Any,
    ) -> RunRecord:
        """Changes a run's state; whatever it waited for, or failed with, is over."""
        changed = event_pb2.RunStateChanged(to_state=state, reason=reason)
        record = await self._store.append(
            run_id,
            [event_pb2.RunEvent(state_changed=changed)],
            changes={"state": state, "failure": None, "waiting_for_port": "", **changes},
            expect=expect,
            request=request,
        )
        if not record.waiting_for_port:  # it does when it is a repeated request that has changed nothing
            self._watch.remove(run_id)
        return record

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Keeps a place in the queue for a run that may join it."""
        if self._draining:
            raise UnavailableError("the server is shutting down: try again", reason="DRAINING", retry_delay=1.0)
        limit = self._options.max_queued_runs
        queued = len(self._queue) + self._joining
        if queued >= limit:
            raise ResourceExhaustedError(
                f"{queued} runs are queued, at most {limit} are allowed: try again when one has ended",
                reason="QUEUE_FULL",
                metadata={"max_queued_runs": limit},
                retry_delay=30.0,
            )
        self._joining += 1
        try:
            yield
        finally:
            self._joining -= 1

    def _enqueue(self, record: RunRecord) -> None:
        """Queues a run; one that a repeated request names may have gone on since, and stays as it is."""
        if record.state == QUEUED and record.run_id not in self._queue:
            self._queue.append(record.run_id)
        self._schedule()

    def _forget(self, run_id: str) -> None:
        if run_id in self._queue:
            self._queue.remove(run_id)

    def _schedule(self) -> None:
        if self._draining:
            return
        # A run resumed while its last execution still tidies up waits for that to end.
        ready = [run_id for run_id in self._queue if run_id not in self._executors]
        for run_id in ready[: max(0, self._options.max_concurrent_runs - len(self._executors))]:
            self._queue.remove(run_id)
            executor = RunExecutor(self._store, self._ports, run_id, self._steering(run_id))
            self._executors[run_id] = executor
            task = asyncio.create_task(self._execute(run_id, executor), name=f"run {run_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _execute(self, run_id: str, executor: RunExecutor) -> None:
        try:
            await executor.execute()
            record = await self._store.get_run(run_id)
            if record.waiting_for_port:
                await self._watch_for(record)
            else:
                self._waits.pop(run_id, None)
            if record.fed_sequence < record.last_sequence:
                self._feed()
        except Exception:
            # The store refused to write what happened; the run stays RUNNING and a restart takes it up.
            logger.exception("run %s stopped without an end in its log", run_id)
        finally:
            del self._executors[run_id]
            self._schedule()

    def _feed(self) -> None:
        """Hands on what stopped runs lack in the metrics store, as soon as that answers."""
        self._unfed = True
        if not self._draining and (self._feeding is None or self._feeding.done()):
            self._feeding = asyncio.create_task(self._feed_stopped())

    async def _feed_stopped(self) -> None:
        while self._unfed:
            self._unfed = False
            await feed_stopped(self._store, self._ports)


def _request_key(request: Any, method: str) -> RequestKey | None:
    """What makes a repeated request the same."""
    return RequestKey.of(method, request.request_id, request.SerializeToString(deterministic=True))


def _plain(value: struct_pb2.Value) -> Any:
    """A Struct's value as Python's, with whole numbers, which travel as doubles, as int."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return {key: _plain(each) for key, each in value.struct_value.fields.items()}
        case "list_value":
            return [_plain(each) for each in value.list_value.values]
        case "number_value":
            return int(value.number_value) if value.number_value.is_integer() else value.number_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None
