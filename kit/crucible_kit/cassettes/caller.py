"""Makes a recorded call again, on a real adapter.

It stands on gRPC's threads for the same reason as the proxy: they tell an adapter's own status when it ends a call that
is still being written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from crucible_kit.cassettes.codec import reason_of
from crucible_kit.cassettes.format import Call
from crucible_kit.cassettes.methods import FINISHED_STATES
from crucible_kit.cassettes.placeholders import parse
from crucible_kit.errors import DETAILS_TRAILER, REASON_TRAILER

_POLL_SECONDS = 5
_FINISH_SECONDS = 300.0
_CALL_SECONDS = 60.0


@dataclass(kw_only=True)
class Outcome:
    """What a call brought: responses, and how it ended."""

    responses: list[Message] = field(default_factory=list)
    status: status_pb2.Status = field(default_factory=status_pb2.Status)
    reason: str = ""
    cancelled: bool = False


def status_of(call: Any) -> tuple[status_pb2.Status, str]:
    """The status of a call that has ended, with its details, and its reason: of ErrorInfo or the crucible-reason
    trailer.
    """
    status = status_pb2.Status(code=call.code().value[0], message=call.details() or "")
    trailers = dict(call.trailing_metadata() or ())
    packed = trailers.get(DETAILS_TRAILER)
    if isinstance(packed, bytes):
        try:
            detailed = status_pb2.Status.FromString(packed)
        except DecodeError:
            detailed = status  # a peer wrote it
        if detailed.code == status.code:
            status = detailed
    return status, reason_of(status) or str(trailers.get(REASON_TRAILER, ""))


class Caller:
    """Calls to one target. `metadata` goes with each of them."""

    def __init__(self, channel: grpc.Channel, metadata: Sequence[tuple[str, str]] = ()) -> None:
        self._channel = channel
        self._metadata = tuple(metadata)

    def make(self, call: Call, requests: Sequence[Message]) -> Outcome:
        """A recorded call with these requests in the place of its own."""
        if call.method.is_poll and not _failed(call):
            return self._finish(call, requests[0])
        return self._once(call, requests)

    def _finish(self, call: Call, request: Any) -> Outcome:
        """Polls until the operation has finished: the recording's caller may have been quicker or slower."""
        request.wait.seconds = max(request.wait.seconds, _POLL_SECONDS)
        end = time.monotonic() + _FINISH_SECONDS
        while True:
            outcome = self._once(call, [request])
            response: Any = outcome.responses[0] if outcome.responses else None
            if response is None or response.operation.state in FINISHED_STATES or time.monotonic() > end:
                return outcome

    def _once(self, call: Call, requests: Sequence[Message]) -> Outcome:
        pace = _Pace(call, requests)
        made: Any = self._channel.stream_stream(call.method.path)(
            pace.requests(),
            timeout=max(call.deadline_s or 0, _CALL_SECONDS),
            metadata=(*((key, _literal(value)) for key, value in call.metadata.items()), *self._metadata),
        )
        outcome = Outcome()
        hang_up_after = len(call.responses) if call.steps[-1].kind == "cancel" else None
        try:
            if hang_up_after == 0:
                made.cancel()
            for data in made:
                outcome.responses.append(call.method.response.FromString(data))
                pace.response_came()
                if len(outcome.responses) == hang_up_after:
                    made.cancel()
        except grpc.RpcError:
            pass  # its status is the call's
        finally:
            pace.response_came(last=True)
        outcome.cancelled = hang_up_after is not None and len(outcome.responses) >= hang_up_after
        outcome.status, outcome.reason = status_of(made)
        return outcome


def _literal(text: str) -> str:
    """A text without its placeholders."""
    return "".join(part for part in parse(text) if isinstance(part, str))


def _failed(call: Call) -> bool:
    return not call.responses


class _Pace:
    """Sends each request once the responses have come that came before it in the recording."""

    def __init__(self, call: Call, requests: Sequence[Message]) -> None:
        self._requests = requests
        self._after: list[int] = []
        responses = 0
        for step in call.steps:
            if step.kind == "response":
                responses += 1
            elif step.kind == "request":
                self._after.append(responses)
        self._come = 0
        self._over = False
        self._moved = threading.Condition()

    def requests(self) -> Iterator[bytes]:
        """The stream of requests."""
        for request, after in zip(self._requests, self._after, strict=True):
            with self._moved:
                self._moved.wait_for(lambda after=after: self._over or self._come >= after)
                if self._over:
                    return
            yield request.SerializeToString()

    def response_came(self, *, last: bool = False) -> None:
        """Counts a response; `last`: none comes any more."""
        with self._moved:
            self._come += 1
            self._over = last
            self._moved.notify_all()
