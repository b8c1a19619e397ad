"""Calls on their way: they wait for their turn, run in their session's worker, and end at their limits."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible_adapters.python_bridge.frames import Frame
from crucible_adapters.python_bridge.options import WorkersOptions
from crucible_adapters.python_bridge.processes import Template, Worker
from crucible_adapters.python_bridge.sessions import Session, Sessions, session_not_found
from crucible_kit.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    KitchenError,
    ResourceExhaustedError,
    from_status,
)

_RETRY_SECONDS = 1.0
# A worker answers with no other: it is not trusted with more.
_WORKERS_REASONS = {
    *("ARGUMENT_UNPARSEABLE", "PYTHON_EXCEPTION", "REF_NOT_FOUND", "RESULT_NOT_SERIALISABLE", "RESULT_TOO_LARGE"),
}


@dataclass(eq=False)
class Call:
    """One thing to be done in a session's worker.

    Attributes:
        header: what the worker is told, without limits.
        payload: the request.
        check: what has to hold when its turn has come; raises what does not.
        keep: the result stays in the worker.
        stream: id of the stream that it is about.
        timeout_seconds: its own limit; None: the session's.
        max_result_bytes: its own limit; None: the adapter's.
        frees: makes room, so it waits however many do.
        waiting: for its turn.
        running: its turn has come; it is not to be cancelled any more.
        abandoned: nobody waits for it any more.
    """

    header: dict[str, Any]
    payload: bytes = b""
    check: Callable[[], None] | None = None
    keep: bool = False
    stream: str = ""
    timeout_seconds: float | None = None
    max_result_bytes: int | None = None
    frees: bool = False
    waiting: bool = True
    running: bool = False
    abandoned: bool = False


class Runner:
    """Runs calls, as many at a time as there are workers.

    Args:
        workers: calls that run at a time.
        classes: of the manifests, each with its library.
    """

    def __init__(
        self,
        options: WorkersOptions,
        sessions: Sessions,
        template: Template,
        *,
        workers: int,
        classes: Iterable[tuple[str, str]],
    ) -> None:
        self._options = options
        self._sessions = sessions
        self._template = template
        self._classes = {f"{library}\0{name}": (library, name) for library, name in classes}
        self._places = asyncio.Semaphore(workers)
        self._waiting = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, session: Session, call: Call) -> pb.Value | None:
        """What the call returns; None: a stream's end, or that there is nothing to return.

        A caller that goes away takes its call along: one that waits is dropped, one that runs is killed with the
        worker, unless that holds objects; then it goes on to its limits, and nobody gets its result.

        Raises:
            KitchenError: QUEUE_FULL, CALL_TIMEOUT, MEMORY_LIMIT, WORKER_DIED, and what the worker answers.
        """
        full = self._waiting >= self._options.max_queue and (self._places.locked() or session.lock.locked())
        if full and not call.frees:
            raise ResourceExhaustedError(
                f"{self._waiting} calls wait for a worker, at most {self._options.max_queue} may: try again later",
                reason="QUEUE_FULL",
                metadata={"limit": self._options.max_queue},
                retry_delay=_RETRY_SECONDS,
            )
        session.calls += 1
        self._waiting += 1
        task = asyncio.ensure_future(self._in_turn(session, call))
        # Not in the task: one that is cancelled at once does not even begin.
        task.add_done_callback(lambda _: self._end(session, call))
        self._own(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._abandon(session, call, task)
            raise

    def _abandon(self, session: Session, call: Call, task: asyncio.Task[Any]) -> None:
        call.abandoned = True
        if not call.running:
            task.cancel()
        elif not session.objects and not session.streams - {call.stream} and session.worker is not None:
            session.worker.kill()

    def _own(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: its caller may have gone

    async def _in_turn(self, session: Session, call: Call) -> pb.Value | None:
        async with session.lock, self._places:
            self._waiting -= 1
            call.waiting, call.running = False, True
            if session.closed:
                await self.end_worker(session)
                raise session_not_found(session.session_id)
            if call.check is not None:
                call.check()
            return await self._in_worker(session, call)

    def _end(self, session: Session, call: Call) -> None:
        self._waiting -= call.waiting
        self._sessions.end_call(session)

    async def _in_worker(self, session: Session, call: Call) -> pb.Value | None:
        keep_as = self._sessions.new_reference(session) if call.keep else ""
        header = {
            **call.header,
            "keep_as": keep_as,
            "stream": call.stream,
            "cpu_seconds": self._options.cpu_seconds,
            "max_result_bytes": min(self._options.max_result_bytes, call.max_result_bytes or 2**62),
        }
        worker = await self._worker(session)
        if call.abandoned:
            return None
        timeout = min(session.call_timeout, call.timeout_seconds or session.call_timeout)
        answer = worker.ask(header, call.payload)
        await asyncio.wait([answer], timeout=timeout)
        if not answer.done():
            await self.end_worker(session)
            raise self._timed_out(session, timeout)
        frame = answer.result()
        if frame is None or worker.killed:
            raise self._died(session, call, await self.end_worker(session))
        return await self._read(session, call, worker, frame, keep_as)

    async def _worker(self, session: Session) -> Worker:
        if session.worker is not None and session.worker.gone:
            # It has ended by itself, between two calls.
            await self.end_worker(session)
        if session.worker is None:
            worker = await self._template.fork(session.memory_limit_bytes)
            if session.closed:
                worker.kill()
                await self._template.reap(worker)
                raise session_not_found(session.session_id)
            session.worker = worker
        return session.worker

    async def _read(self, session: Session, call: Call, worker: Worker, frame: Frame, keep_as: str) -> pb.Value | None:
        try:
            match frame.header.get("is"):
                case "value":
                    return pb.Value.FromString(frame.payload)
                case "kept":
                    if session.closed:
                        raise session_not_found(session.session_id)
                    if call.abandoned:
                        await self._let_go(session, worker, {"do": "release", "ref_id": keep_as})
                        return None
                    kinds = tuple(self._classes[each] for each in frame.header["kinds"])
                    result = pb.Value(ref=pb.ObjectRef(ref_id=keep_as, class_name=frame.header["class_name"]))
                    self._sessions.keep(session, keep_as, kinds)
                    return result
                case "done" if call.abandoned and call.header["do"] == "stream":
                    await self._let_go(session, worker, {**call.header, "do": "stop", "stream": call.stream})
                    return None
                case "done" | "end":
                    return None
                case "out_of_memory":
                    await self.end_worker(session)
                    raise self._out_of_memory(session)
                case "refused":
                    error = from_status(status_pb2.Status.FromString(frame.payload))
                    if error.reason in _WORKERS_REASONS:
                        raise error
        except (DecodeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, KitchenError):
                raise
        await self.end_worker(session)
        raise FailedPreconditionError(
            "the worker answered what it never should and was stopped; the session's objects are lost",
            reason="WORKER_DIED",
        )

    async def _let_go(self, session: Session, worker: Worker, header: dict[str, Any]) -> None:
        """Frees in the worker what nobody will ask for."""
        answer = worker.ask({**header, "cpu_seconds": self._options.cpu_seconds})
        await asyncio.wait([answer], timeout=session.call_timeout)
        if not answer.done() or answer.result() is None:
            await self.end_worker(session)

    async def end_worker(self, session: Session) -> int:
        """Ends a session's worker, with its objects; its exit status."""
        worker, session.worker = session.worker, None
        self._sessions.forget_objects(session)
        if worker is None:
            return 0
        worker.kill()
        return await self._template.reap(worker)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs something that nobody waits for, but `close`."""
        self._own(asyncio.ensure_future(work))

    def free(self, sessions: list[Session]) -> None:
        """Ends the workers of closed sessions, soon."""
        for session in sessions:
            if session.worker is not None:
                session.worker.kill()
                if not session.lock.locked():  # otherwise the call that runs does it
                    self.spawn(self.end_worker(session))

    async def close(self) -> None:
        """Waits for all that goes on; the workers have been killed."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _timed_out(self, session: Session, timeout: float) -> KitchenError:
        if session.closed:
            return session_not_found(session.session_id)
        return DeadlineExceededError(
            f"the call took longer than {timeout:g} s and was stopped; the session's objects are lost",
            reason="CALL_TIMEOUT",
            metadata={"limit_seconds": timeout},
        )

    def _out_of_memory(self, session: Session) -> KitchenError:
        return ResourceExhaustedError(
            f"the call used more than {session.memory_limit_bytes} bytes and was stopped; "
            "the session's objects are lost",
            reason="MEMORY_LIMIT",
            metadata={"limit_bytes": session.memory_limit_bytes},
        )

    def _died(self, session: Session, call: Call, status: int) -> KitchenError:
        if session.closed:
            return session_not_found(session.session_id)
        if status == -signal.SIGXCPU:
            return DeadlineExceededError(
                f"the call used more than {self._options.cpu_seconds} s of processor time and was stopped; the "
                "session's objects are lost",
                reason="CALL_TIMEOUT",
                metadata={"limit_cpu_seconds": self._options.cpu_seconds},
            )
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return FailedPreconditionError(
            f"the worker ended with {how} in the middle of the call; the session's objects are lost",
            reason="WORKER_DIED",
            metadata={"status": status},
        )
