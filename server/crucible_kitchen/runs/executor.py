"""Executes one run: attempts until it ends, is paused, or the server drains."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

from crucible.kitchen.v1 import event_pb2
from crucible_kit.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    KitchenError,
    NotFoundError,
    to_failure,
)
from crucible_kitchen.recipes import RECIPES
from crucible_kitchen.recipes.recipe import find_recipe
from crucible_kitchen.runs.checkpoints import CheckpointDamagedError, CheckpointSaver, sweep
from crucible_kitchen.runs.control import CancelRequested, DrainRequested, PauseRequested, RunControl
from crucible_kitchen.runs.journal import RunJournal
from crucible_kitchen.runs.metrics_feed import MetricsFeed
from crucible_kitchen.runs.summary import stopped
from crucible_kitchen.runs.waiting import absent_port
from crucible_kitchen.stages import STAGES
from crucible_kitchen.store.records import RunRecord, checkpoint_message
from crucible_kitchen.store.store import Store
from crucible_kitchen.workflows.context import Ports, RunContext, StageContext
from crucible_kitchen.workflows.interpreter import Interpreter

logger = logging.getLogger(__name__)

MAX_ATTEMPTS_WITHOUT_CHECKPOINT = 3
_ENGINE_PORTS = ("training", "sampling")
_FEED_SECONDS = 10.0
_EXECUTABLE = (event_pb2.RUN_STATE_QUEUED, event_pb2.RUN_STATE_RUNNING, event_pb2.RUN_STATE_CANCELLING)
_PAGE = 128
# What an adapter that was started anew has forgotten.
_FORGOTTEN = ("SESSION_NOT_FOUND", "DATASET_NOT_FOUND", "CHECKPOINT_NOT_FOUND")


class RunExecutor:
    """One run's execution on this server.

    Args:
        steering: held while what is asked of the run changes.
    """

    def __init__(self, store: Store, ports: Ports, run_id: str, steering: asyncio.Lock) -> None:
        self._store = store
        self._ports = ports
        self._run_id = run_id
        self._steering = steering
        self.control = RunControl()
        self._journal = RunJournal(store, run_id, self.control)

    async def execute(self) -> None:
        """Runs attempts until the run is COMPLETED, FAILED, CANCELLED or PAUSED, or the server drains."""
        feed = MetricsFeed(self._store, self._ports, self._run_id)
        following = asyncio.create_task(feed.follow())
        try:
            await self._attempts()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            try:
                async with asyncio.timeout(_FEED_SECONDS):
                    await feed.finish()
            except (TimeoutError, KitchenError):
                logger.warning("run %s: the metrics store is behind the run's log, which has everything", self._run_id)

    async def _attempts(self) -> None:
        fruitless = 0
        while True:
            before = await self._store.get_run(self._run_id)
            if await self._stopped_before(before):
                return
            record = await self._begin(before)
            error = await self._attempt(record)
            if error is None:
                return
            port = absent_port(error, self._ports)
            if port:
                if await self._wait_for(port, error):
                    return
                continue
            after = await self._store.get_run(self._run_id)
            progressed = after.latest_checkpoint != before.latest_checkpoint
            fruitless = 1 if progressed else fruitless + 1
            if fruitless >= MAX_ATTEMPTS_WITHOUT_CHECKPOINT:
                hosted = not self._ports.is_remote(error.port)
                await self._end(event_pb2.RUN_STATE_FAILED, error=_gave_up(fruitless, error, hosted=hosted))
                return
            logger.warning("run %s: attempt %d was lost: %s", self._run_id, record.attempt, error)

    async def _wait_for(self, port: str, error: KitchenError) -> bool:
        """Lets the run wait, PAUSED, for an adapter that is away. False: something else is asked of it."""
        async with self._steering:
            if self.control.stop_reason() is not None:
                return False
            await self._end(event_pb2.RUN_STATE_PAUSED, error=error, waiting_for_port=port)
        return True

    async def _stopped_before(self, record: RunRecord) -> bool:
        """Obeys a stop that was asked for between attempts; a run that ended meanwhile stays as it is."""
        if record.state not in _EXECUTABLE:
            return True
        self.control.pause |= record.pause_requested
        self.control.cancel |= record.state == event_pb2.RUN_STATE_CANCELLING
        stop = self.control.stop_reason()
        if isinstance(stop, CancelRequested):
            await self._end(event_pb2.RUN_STATE_CANCELLED, reason=str(stop))
        elif isinstance(stop, PauseRequested):
            reason = ""
            if record.attempt and record.state == event_pb2.RUN_STATE_RUNNING:
                # The steps that the lost attempt did not save are undone now: a paused run stands at a checkpoint.
                step = (await self._begin(record)).step
                reason = f"the attempt was lost before it saved a checkpoint: the run stands at step {step}"
            await self._end(event_pb2.RUN_STATE_PAUSED, reason=reason)
        return stop is not None

    async def _begin(self, record: RunRecord) -> RunRecord:
        """Writes that an attempt begins, and what it supersedes."""
        attempt, checkpoint = record.attempt + 1, record.latest_checkpoint
        started = event_pb2.AttemptStarted(attempt=attempt)
        first = 1
        if checkpoint is not None:
            first = checkpoint.sequence + 1
            started.from_checkpoint.CopyFrom(checkpoint_message(checkpoint))
        if record.attempt and first <= record.last_sequence:
            started.superseded_first_sequence = first
            started.superseded_last_sequence = record.last_sequence
        step = checkpoint.step if checkpoint is not None else 0
        events = []
        changes: dict[str, object] = {"attempt": attempt, "step": step}
        changes |= {"failure": None, "end_time": None, "summary": None}
        if record.state != event_pb2.RUN_STATE_RUNNING:
            changed = event_pb2.RunStateChanged(to_state=event_pb2.RUN_STATE_RUNNING)
            events.append(event_pb2.RunEvent(state_changed=changed))
            changes["state"] = event_pb2.RUN_STATE_RUNNING
        if record.start_time is None:
            changes["start_time"] = datetime.now(UTC)
        events.append(event_pb2.RunEvent(attempt_started=started, step=step))
        return await self._journal.append(events, changes=changes)

    async def _attempt(self, record: RunRecord) -> KitchenError | None:
        """One walk. Returns the error after which another attempt makes sense; None when the run has ended or
        stopped.
        """
        recipe = find_recipe(record.recipe, RECIPES)
        try:
            blob = await self._ports.stub("blob")
            saver = CheckpointSaver(self._journal, blob, keep_last=record.config.get("keep_last", 0))
            # A crash may have come between the newest checkpoint and the deletion of an old one.
            await saver.forget_old(step=record.step)
            await sweep(blob, self._run_id, await self._store.checkpoints(self._run_id))
        except KitchenError as error:
            if _is_lost(error):
                return error
            await self._end(event_pb2.RUN_STATE_FAILED, error=error)
            return None
        context = RunContext(
            run_id=record.run_id,
            recipe=record.recipe,
            workflow=record.workflow,
            seed=record.seed,
            attempt=record.attempt,
            config=record.config,
            config_sha256=record.config_sha256,
            ports=self._ports,
            journal=self._journal,
            saver=saver,
            checkpoint=record.latest_checkpoint,
        )

        async def boundary(stage: StageContext | None) -> None:
            stop = self.control.stop_reason()
            if stop is None or context.released:
                return
            unsaved = context.checkpoint is None or context.checkpoint.step != context.step
            if stage is not None and unsaved and not isinstance(stop, CancelRequested):
                await saver.save(stage)
            # A cancellation may have come while the checkpoint was written.
            raise self.control.stop_reason() or stop

        interpreter = Interpreter(recipe.workflow, STAGES, context, boundary=boundary)
        position = record.latest_checkpoint.position if record.latest_checkpoint is not None else None
        try:
            try:
                await interpreter.run(position, expected=await self._planned(record))
            finally:
                await self._journal.settle()
        except PauseRequested:
            await interpreter.finalize()
            if self.control.cancel:
                await self._end(event_pb2.RUN_STATE_CANCELLED, reason=self.control.cancel_reason)
            else:
                await self._end(event_pb2.RUN_STATE_PAUSED)
            return None
        except DrainRequested:
            await interpreter.finalize()
            return None
        except CancelRequested as stop:
            await interpreter.rollback(stop)
            await interpreter.finalize()
            await self._end(event_pb2.RUN_STATE_CANCELLED, reason=str(stop))
            return None
        except CheckpointDamagedError as error:
            if not await self._fall_back(error):
                await self._fail(interpreter, error)
                return None
            await interpreter.finalize()
            return error
        except KitchenError as error:
            if _is_lost(error):
                await interpreter.finalize()
                return error
            await self._fail(interpreter, error)
            return None
        except Exception as error:
            logger.exception("run %s failed", self._run_id)
            hidden = InternalError(
                f"the run failed by a defect ({type(error).__name__}): the server's log has the details",
                reason="INTERNAL_BUG",
            )
            await self._fail(interpreter, hidden)
            return None
        await interpreter.finalize()
        await self._end(event_pb2.RUN_STATE_COMPLETED)
        return None

    async def _fall_back(self, error: CheckpointDamagedError) -> bool:
        """Lets the run go on from the checkpoint before a damaged one, and says so. False: there is none."""
        record = error.record
        earlier = [each for each in await self._store.checkpoints(self._run_id) if each.sequence < record.sequence]
        if all(each.damage_sequence is not None for each in earlier):
            return False
        damaged = event_pb2.CheckpointDamaged(checkpoint=checkpoint_message(record))
        damaged.failure.CopyFrom(to_failure(error, source=self._run_id))
        event = event_pb2.RunEvent(checkpoint_damaged=damaged, step=record.step)
        await self._journal.append([event], damaged=record.sequence)
        return True

    async def _planned(self, record: RunRecord) -> dict[str, Any]:
        """What the first attempt planned: the values that a start from nothing must reproduce."""
        after = 0
        while record.attempt > 1 and (events := await self._store.read_events(self._run_id, after, limit=_PAGE)):
            for event in events:
                if event.HasField("planned"):
                    plan = event.planned
                    return {
                        "dataset_fingerprint": plan.dataset_fingerprint,
                        "steps_per_epoch": plan.steps_per_epoch,
                        "total_steps": plan.total_steps,
                    }
            after = events[-1].sequence
        return {}

    async def _fail(self, interpreter: Interpreter, error: KitchenError) -> None:
        await interpreter.rollback(error)
        await interpreter.finalize()
        await self._end(event_pb2.RUN_STATE_FAILED, error=error)

    async def _end(
        self,
        state: event_pb2.RunState,
        *,
        error: KitchenError | None = None,
        reason: str = "",
        waiting_for_port: str = "",
    ) -> None:
        changed = event_pb2.RunStateChanged(to_state=state, reason=reason, waiting_for_port=waiting_for_port)
        if error is not None:
            changed.failure.CopyFrom(to_failure(error, source=self._run_id))
            changed.reason = error.message
        events, changes = await stopped(self._store, self._run_id, changed)
        if error is not None:
            changes["failure"] = changed.failure
        await self._journal.append(events, changes=changes)


def _is_lost(error: KitchenError) -> bool:
    """Whether another attempt makes sense: an adapter is gone, hangs, or was started anew."""
    forgotten = isinstance(error, NotFoundError) and error.reason in _FORGOTTEN
    return error.retryable or forgotten or isinstance(error, DeadlineExceededError)


def _gave_up(attempts: int, error: KitchenError, *, hosted: bool) -> KitchenError:
    """Why a run fails after so many attempts without a new checkpoint, the last of which ended with `error`.

    Args:
        hosted: the adapter that it came from is the host's to start.
    """
    return FailedPreconditionError(
        f"{attempts} attempts without a new checkpoint; the last ended with: {error.message}",
        reason="ENGINE_CRASH_LOOP" if hosted and error.port in _ENGINE_PORTS else "ADAPTER_LOST",
        metadata={"attempts": attempts, "last_reason": error.reason, "port": error.port},
    )
