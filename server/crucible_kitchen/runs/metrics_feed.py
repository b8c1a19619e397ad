"""Feeds the metrics store from the log: what is in the store was in the log first, and a repeat changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from crucible.kitchen.v1 import event_pb2
from crucible.port.metrics.v1 import metrics_pb2
from crucible_kit.errors import DeadlineExceededError, KitchenError
from crucible_kitchen.store.store import Store
from crucible_kitchen.workflows.context import Ports

logger = logging.getLogger(__name__)

_BATCH = 128
_MAX_POINTS = 4096
# Fast steps are recorded together: each batch is a transaction of the metrics store.
_GATHER_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_WAIT_SECONDS = 30.0


class MetricsFeed:
    """Follows one run's log and records the metrics of its events.

    Args:
        after: events up to this one are in the metrics store already.
    """

    def __init__(self, store: Store, ports: Ports, run_id: str, *, after: int = 0) -> None:
        self._store = store
        self._ports = ports
        self._run_id = run_id
        self._sent = after
        self._unanswered = False

    async def follow(self) -> None:
        """Feeds until it is cancelled."""
        while True:
            await self.catch_up()
            if await self._store.wait_for_events(self._run_id, self._sent, _WAIT_SECONDS):
                await asyncio.sleep(_GATHER_SECONDS)

    async def catch_up(self) -> None:
        """Feeds what is in the log now. A store that does not answer is asked again until it does."""
        while events := await self._store.read_events(self._run_id, self._sent, limit=_BATCH):
            for batch in _batches(events):
                await self._record(batch)
            self._sent = events[-1].sequence

    async def finish(self) -> None:
        """Feeds what is in the log now and notes that, so that nobody need look again."""
        await self.catch_up()
        await self._store.append(self._run_id, [], changes={"fed_sequence": self._sent})

    async def _record(self, request: metrics_pb2.RecordMetricsRequest) -> None:
        while True:
            try:
                await (await self._ports.stub("metrics")).RecordMetrics(request)
                self._unanswered = False
                return
            except KitchenError as error:
                if not error.retryable and not isinstance(error, DeadlineExceededError):
                    logger.error(
                        "run %s: the metrics of %d values up to event %d are not in the metrics store: %s",
                        *(self._run_id, len(request.points), request.batch_key, error),
                    )
                    return
                if not self._unanswered:
                    logger.warning("run %s: the metrics store is asked until it answers: %s", self._run_id, error)
                self._unanswered = True
                await asyncio.sleep(_RETRY_SECONDS)


async def feed_stopped(store: Store, ports: Ports) -> None:
    """Feeds what stopped runs lack: the metrics store was away when they stopped, or their server died before."""
    try:
        for run_id, fed in await store.runs_to_feed():
            await MetricsFeed(store, ports, run_id, after=fed).finish()
    except KitchenError as error:
        logger.warning("the metrics store may lack the ends of stopped runs until the next start: %s", error)


def _batches(events: Sequence[event_pb2.RunEvent]) -> list[metrics_pb2.RecordMetricsRequest]:
    """The events' metrics in as few batches as may be, in order, each with its newest event's sequence as its key.

    What is recorded under a key has everything before it recorded too; so a repeat may draw the batches' borders
    elsewhere.
    """
    batches: list[metrics_pb2.RecordMetricsRequest] = []
    for event in events:
        metrics = _metrics(event)
        if not metrics:
            continue
        last = batches[-1] if batches else None
        if last is None or last.attempt != event.attempt or len(last.points) + len(metrics) > _MAX_POINTS:
            last = metrics_pb2.RecordMetricsRequest(run_id=event.run_id, attempt=event.attempt)
            batches.append(last)
        last.batch_key = event.sequence
        last.points.extend(
            metrics_pb2.MetricPoint(name=name, step=event.step, value=value, time=event.time)
            for name, value in sorted(metrics.items())
        )
    return batches


def _metrics(event: event_pb2.RunEvent) -> dict[str, float]:
    match event.WhichOneof("payload"):
        case "step_completed":
            return dict(event.step_completed.metrics)
        case "evaluation_completed":
            return dict(event.evaluation_completed.metrics)
        case _:
            return {}
