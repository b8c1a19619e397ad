"""What a replayed recording answers: which recorded call a call is, and what comes next in it.

Order: see tracks.py. Polls are outside of it: as soon as the call that made an operation was replayed, every poll for
it gets the recorded final answer, however often a client asks. An operation that never finished in the recording gets
the last answer that it had there. A call with a sequence or a request id that equals one that was answered gets that
answer again, as the ports' contracts have it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from crucible_kit.cassettes import placeholders
from crucible_kit.cassettes.format import Call, Cassette, Step, require_calls
from crucible_kit.cassettes.matching import Difference
from crucible_kit.cassettes.methods import FINISHED_STATES, Method
from crucible_kit.cassettes.tracks import Order, Track, is_numbered, wrong_metadata
from crucible_kit.errors import FailedPreconditionError

logger = logging.getLogger(__name__)

_NAMES_OF_SESSIONS = ("request.session_id", "request[0].session_id")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A recorded call that a call may be, with what the call has said about its placeholders."""

    track: Track
    call: Call
    found: Mapping[str, str]


class Playback:
    """Cassettes while they are played; belongs to one event loop.

    Args:
        order: `session` as tracks.py says, `any`: every call whenever it comes.
        repeat: a cassette starts over once all its calls have come.
        hold_seconds: how long a call waits for those that must come before it: calls on one connection may overtake
            each other.

    Attributes:
        mismatches: what was answered to calls that the recordings do not have.

    Raises:
        InvalidArgumentError: CASSETTE_EMPTY for one without calls.
    """

    def __init__(
        self,
        cassettes: Sequence[Cassette],
        *,
        order: Order = "session",
        repeat: bool = False,
        hold_seconds: float = 2.0,
    ) -> None:
        for each in cassettes:
            require_calls(each, each.calls)
        self.tracks = [Track.at_start(each, order) for each in cassettes]
        self.mismatches: list[FailedPreconditionError] = []
        self._repeat = repeat
        self._hold_seconds = hold_seconds
        self._moved = asyncio.Condition()

    def begin(self, method: Method, metadata: Mapping[str, str]) -> Turn:
        """A call that has come; `metadata` is its caller's."""
        return Turn(self, method, metadata)

    async def choose(self, turn: Turn) -> Candidate | None:
        """The recorded call that a turn's requests begin; None while it may be more than one and none has to say
        anything yet.
        """
        if turn.method.is_poll:
            return self._poll(turn.method, turn.requests[0])
        candidates = self._candidates(turn)
        # One whose turn it is may need more requests; that is no reason to wait for another's turn.
        ready = [each for each in candidates if not each.track.missing_before(each.call)]
        if not ready:
            repeated = self._repeated(turn)
            if repeated is not None:
                return repeated
            if candidates:
                ready = candidates
            elif self._repeat and self._restart(turn):
                return await self.choose(turn)
            else:
                raise self._no_call(turn)
        due = next((each for each in ready if _is_due(each.call, len(turn.requests), turn.closed)), None)
        if due is None:
            return None
        if due.track.missing_before(due.call):
            await self._wait_for_those_before(due)
            # Meanwhile others may have taken it, or said what its placeholders stand for.
            return await self.choose(turn)
        due.track.taken.add(due.call.number)
        due.track.bindings.update(due.found)
        async with self._moved:
            self._moved.notify_all()
        return due

    def mismatch(self, method: Method, difference: Difference, candidate: Candidate | None) -> FailedPreconditionError:
        """The error of a call that is not as recorded."""
        where = "" if candidate is None else f" ({candidate.track.cassette.path.name}, call {candidate.call.number})"
        metadata: dict[str, Any] = {
            "method": method.full_name,
            "field": difference.path,
            "expected": difference.expected,
            "got": difference.got,
        }
        if candidate is not None:
            metadata |= {"cassette": candidate.track.cassette.path.name, "call": candidate.call.number}
        error = FailedPreconditionError(
            f"{method.full_name}: {difference}{where}", reason="CASSETTE_MISMATCH", metadata=metadata
        )
        self.mismatches.append(error)
        logger.warning("%s", error.message)
        return error

    def _candidates(self, turn: Turn) -> list[Candidate]:
        """The calls that have not come yet and begin like a turn."""
        fitting = []
        for track, call in self._open_calls(turn.method):
            if wrong_metadata(call, turn.metadata) is None:
                difference, found = track.compare(call, turn.requests, closed=turn.closed)
                if difference is None:
                    fitting.append(Candidate(track=track, call=call, found=found))
        return fitting

    def _open_calls(self, method: Method) -> list[tuple[Track, Call]]:
        return [
            (track, call)
            for track in self.tracks
            for call in track.calls
            if call.method == method and call.number not in track.taken
        ]

    async def _wait_for_those_before(self, candidate: Candidate) -> None:
        track, call = candidate.track, candidate.call
        with suppress(TimeoutError):
            async with asyncio.timeout(self._hold_seconds), self._moved:
                await self._moved.wait_for(lambda: not track.missing_before(call))
        missing = track.missing_before(call)
        if missing:
            expected = f"{missing[0].method.name}, call {missing[0].number}"
            raise self.mismatch(call.method, Difference("order", expected, f"{call.method.name} before it"), candidate)

    def _repeated(self, turn: Turn) -> Candidate | None:
        if not turn.requests or not is_numbered(turn.requests[0]):
            return None
        for track in self.tracks:
            for call in track.calls:
                if call.method == turn.method and call.number in track.taken:
                    difference, _ = track.compare(call, turn.requests, closed=turn.closed)
                    if difference is None:
                        return Candidate(track=track, call=call, found={})
        return None

    def _restart(self, turn: Turn) -> bool:
        """Starts a cassette over that is played to its end and has the call then; whether there is one."""
        for track in self.tracks:
            if track.played and track.calls:
                before = track.bindings, track.taken
                track.restart()
                if any(each.track is track for each in self._candidates(turn)):
                    return True
                track.bindings, track.taken = before
        return False

    def _no_call(self, turn: Turn) -> FailedPreconditionError:
        """Shows the recorded call that comes nearest: one whose turn it is, of the same session."""
        found: list[tuple[bool, bool, Difference, Candidate]] = []
        for track, call in self._open_calls(turn.method):
            difference = wrong_metadata(call, turn.metadata)
            if difference is None:
                difference, _ = track.compare(call, turn.requests, closed=turn.closed)
            if difference is not None:
                candidate = Candidate(track=track, call=call, found={})
                other = difference.path in _NAMES_OF_SESSIONS or difference.path.startswith("metadata")
                found.append((other, bool(track.missing_before(call)), difference, candidate))
        if found:
            _, _, difference, candidate = min(found, key=lambda each: each[:2])
            return self.mismatch(turn.method, difference, candidate)
        waiting = [(track, call) for track in self.tracks for call in track.calls if call.number not in track.taken]
        expected = f"{waiting[0][1].method.name} next" if waiting else "no further call"
        return self.mismatch(turn.method, Difference("method", expected, turn.method.name), None)

    def _poll(self, method: Method, request: Any) -> Candidate:
        """The best answer that an operation has: a final one, else the last."""
        best: Candidate | None = None
        for track in self.tracks:
            for call in track.cassette.calls:
                if call.method != method or not call.requests:
                    continue
                recorded: Any = call.requests[0]
                same = all(
                    placeholders.match(getattr(recorded, name), getattr(request, name), track.bindings) is not None
                    for name in ("session_id", "operation_id")
                )
                if same and (best is None or not _is_final(best.call)):
                    best = Candidate(track=track, call=call, found={})
        if best is None:
            got = f"{request.operation_id!r} of session {request.session_id!r}"
            difference = Difference("request.operation_id", "no answer for it, or none yet", got)
            raise self.mismatch(method, difference, None)
        return best


def _is_due(call: Call, requests: int, closed: bool) -> bool:
    """Whether an answer, or the end, stands right after the requests that have come."""
    come = 0
    for step in call.steps:
        if step.kind == "request":
            come += 1
        elif step.kind == "half_close":
            if not closed:
                return False
        else:
            return come == requests
    return False


def _is_final(call: Call) -> bool:
    return any(response.operation.state in FINISHED_STATES for response in call.responses)  # type: ignore[attr-defined]


class Turn:
    """One call on its way through the recording.

    Give it the requests as they come, and their end; after each, `steps` says what to do. When it is none of the
    recorded calls, it raises FAILED_PRECONDITION CASSETTE_MISMATCH.
    """

    def __init__(self, playback: Playback, method: Method, metadata: Mapping[str, str]) -> None:
        self.method = method
        self.metadata = metadata
        self.requests: list[Message] = []
        self.closed = not method.client_streaming
        self._playback = playback
        self._chosen: Candidate | None = None
        self._at = 0

    @property
    def track(self) -> Track:
        """The cassette that it is in; only while there are steps."""
        assert self._chosen is not None
        return self._chosen.track

    async def request(self, message: Message) -> None:
        """Takes the next request."""
        self.requests.append(message)
        await self._advance()

    async def end_of_requests(self) -> None:
        """Takes the end of a stream of requests."""
        self.closed = True
        await self._advance()
        if self._chosen is None:
            # Whatever it may still be goes on after more requests, or without their end.
            raise self._playback.mismatch(
                self.method, Difference("request", "more requests, or none at all", "the end of the requests"), None
            )

    def steps(self) -> list[Step]:
        """What follows before the next request: responses, and an end."""
        if self._chosen is None:
            return []
        steps, start = self._chosen.call.steps, self._at
        while self._at < len(steps) and steps[self._at].kind not in ("request", "half_close"):
            self._at += 1
        return steps[start : self._at]

    async def _advance(self) -> None:
        if self._chosen is None:
            self._chosen = await self._playback.choose(self)
            if self._chosen is None:
                return
        else:
            track, call = self._chosen.track, self._chosen.call
            newest = max(0, len(self.requests) - 1)
            difference, found = track.compare(call, self.requests, closed=self.closed, start=newest)
            if difference is not None:
                raise self._playback.mismatch(self.method, difference, self._chosen)
            track.bindings.update(found)
        self._pass_requests()

    def _pass_requests(self) -> None:
        """Moves on over the requests that have come, and over their end."""
        assert self._chosen is not None
        steps = self._chosen.call.steps
        passed = sum(step.kind == "request" for step in steps[: self._at])
        while self._at < len(steps):
            kind = steps[self._at].kind
            if kind == "request" and passed < len(self.requests):
                passed += 1
            elif kind != "half_close" or not self.closed:
                return
            self._at += 1
