"""Fair turns on one device: a thread that runs one job at a time, and a queue of jobs for each session.

    ComputeQueue A   a1 a2 a3 ...        turns:  a1 b1 c1 a2 b2 a3 ...
    ComputeQueue B   b1 b2
    ComputeQueue C   c1

Jobs of one queue run in the order of their submission. Queues that have work take turns, one job each, in the order in
which they got it. So before a queue's next job begins, any other queue has run at most one job since that job was first
in line. A job that was cancelled takes no turn.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


def nothing() -> None:
    """For jobs that need nothing done in their place."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    run: Callable[[], Any]
    on_cancelled: Callable[[], None]
    cost: int
    future: Future[Any] = field(default_factory=Future)


class ComputeQueue:
    """One session's jobs. Any thread may use it."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._jobs: deque[_Job] = deque()
        self._in_turn = False
        self._closed = False
        self.unfinished = 0
        """Jobs that wait or run; cancelled ones count until their place in the queue has passed."""
        self.cost = 0
        """Sum of what those jobs were said to cost."""

    def submit(
        self, run: Callable[[], Value], *, on_cancelled: Callable[[], None] = nothing, cost: int = 0
    ) -> Future[Value]:
        """Queue a job. `Future.cancel` works until it begins; then `on_cancelled` runs on the compute thread in the
        job's place, unless the queue was closed by then.

        Raises RuntimeError when the queue or the thread is closed.
        """
        job = _Job(run=run, on_cancelled=on_cancelled, cost=cost)
        with self._compute.changed:
            if self._closed or self._compute.closed:
                raise RuntimeError("the compute queue is closed")
            self._jobs.append(job)
            self.unfinished += 1
            self.cost += cost
            if not self._in_turn:
                self._in_turn = True
                self._compute.turns.append(self)
                self._compute.changed.notify()
        return job.future

    def close(self) -> None:
        """Cancel the jobs that have not begun, and forget them. One that runs goes on."""
        with self._compute.changed:
            self._closed = True
            dropped = list(self._jobs)
            self._jobs.clear()
            for job in dropped:
                self._passed(job)
        # not under the lock: it runs callbacks
        for job in dropped:
            job.future.cancel()

    def _take(self) -> _Job | None:
        with self._compute.changed:
            return self._jobs.popleft() if self._jobs else None

    def _end_turn(self, job: _Job | None) -> None:
        with self._compute.changed:
            if job is not None:
                self._passed(job)
            # only now, behind the queues that came while its job was running
            self._in_turn = bool(self._jobs)
            if self._in_turn:
                self._compute.turns.append(self)

    def _passed(self, job: _Job) -> None:
        self.unfinished -= 1
        self.cost -= job.cost

    def _run_turn(self) -> None:
        """On the compute thread: run the first job that was not cancelled."""
        while (job := self._take()) is not None and not job.future.set_running_or_notify_cancel():
            try:
                job.on_cancelled()
            except Exception:
                logger.exception("what a cancelled job left to do has failed")
            with self._compute.changed:
                self._passed(job)
        if job is None:
            self._end_turn(None)
            return
        future = job.future
        try:
            value = job.run()
        except BaseException as error:
            self._end_turn(job)
            # The error's traceback holds this frame: whoever is told of the error finds the memory free that the job
            # has computed with.
            del job
            future.set_exception(error)
            del future
            return
        # first, so that whoever has the result finds its room free
        self._end_turn(job)
        del job
        future.set_result(value)


class Compute:
    """The thread of one device."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        """Guards the queues and wakes the thread."""
        self.turns: deque[ComputeQueue] = deque()
        """Queues that have work, without the one whose job is running."""
        self.closed = False
        self._shared = ComputeQueue(self)
        # a daemon: an engine that fails while it starts must not wait for it
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    def queue(self) -> ComputeQueue:
        """A queue with turns of its own."""
        return ComputeQueue(self)

    def submit(self, run: Callable[[], Value]) -> Future[Value]:
        """Queue work that belongs to no session, such as loading a model; all of it shares one queue's turns."""
        return self._shared.submit(run)

    def close(self) -> None:
        """Cancel what waits, let the running job end, and end the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self._thread.join()
        while self.turns:
            self.turns.popleft().close()

    def _run(self) -> None:
        while (queue := self._next_queue()) is not None:
            queue._run_turn()
            # a waiting thread must not keep a closed session alive
            del queue

    def _next_queue(self) -> ComputeQueue | None:
        with self.changed:
            while not self.turns and not self.closed:
                self.changed.wait()
            return None if self.closed else self.turns.popleft()
