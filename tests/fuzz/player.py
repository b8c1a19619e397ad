"""Plays calls against an address, as bytes, and judges what comes back."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from crucible_kit.errors import DETAILS_TRAILER, DOMAIN, REASON_TRAILER
from tests.fuzz.calls import CANCEL, NO_HALF_CLOSE, PLAIN, READ_ONE, SHORT_DEADLINE, Call, Method
from tests.fuzz.wire import encode
from tests.fuzz.world import World

DEADLINE_SECONDS = 45.0
# A call that takes longer goes on beside those that follow; one that may wait for something is cancelled.
PATIENCE_SECONDS = 2.0
_MAY_WAIT = frozenset({"WaitRun", "WatchRun", "AwaitOperation", "Watch", "ServerReflectionInfo"})
_MOST_RESPONSES = 300
# Missing from the stubs.
_END: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]
_SILENCE_SECONDS = 0.1
_REASON = re.compile(r"[A-Z][A-Z0-9_]{2,63}")
# The transport refuses these itself, before any of the server's code runs.
_TRANSPORT = (
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than metadata"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "metadata size"),
)
# A hub that can't be reached is no defect of the server.
_MAY_BE_UNAVAILABLE = frozenset({"HUB_UNREACHABLE"})
# gRPC's core may drop the status of a call that its server ends while the client still writes.
_MAY_BE_CUT_OFF = "CONNECTION_LOST"


@dataclass
class Outcome:
    """How a call ended.

    Attributes:
        code: None when this client did not let it end, or could not send it.
    """

    call: Call
    requests: list[bytes]
    responses: list[bytes] = field(default_factory=list)
    code: grpc.StatusCode | None = None
    details: str = ""
    trailers: dict[str, str | bytes] = field(default_factory=dict)
    seconds: float = 0.0
    not_sent: str = ""

    @property
    def refused(self) -> bool:
        """Whether the server has said no: then nothing may have happened."""
        ours = self.call.behaviour == PLAIN and self.code is not None
        return ours and self.code not in (
            grpc.StatusCode.OK,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )

    @property
    def reason(self) -> str:
        value = self.trailers.get(REASON_TRAILER, "")
        return value if isinstance(value, str) else value.decode("ascii", "replace")


@dataclass(frozen=True)
class Problem:
    """Something that must not be.

    Attributes:
        signature: equal for two problems that are one defect, as far as can be told.
        text: for people.
    """

    signature: str
    text: str


class Player:
    """Makes calls on one channel."""

    def __init__(self, address: str, world: World) -> None:
        self.channel = grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_metadata_size", 128 * 1024),
                ("grpc.enable_retries", 0),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._world = world
        self.slow: set[asyncio.Task[Outcome]] = set()

    async def close(self) -> None:
        await self.channel.close()

    async def play(self, call: Call) -> Outcome | None:
        """Makes a call; None when it is slow: its outcome comes from `settle`."""
        requests = [encode(frame, self._world.resolve) for frame in call.frames]
        task = asyncio.create_task(self._make(call, requests))
        await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
        if task.done():
            return task.result()
        self.slow.add(task)
        return None

    async def settle(self) -> list[Outcome]:
        """The outcomes of the slow calls, all ended."""
        tasks, self.slow = self.slow, set()
        return [await task for task in tasks]

    async def _make(self, call: Call, requests: list[bytes]) -> Outcome:
        outcome = Outcome(call, requests)
        begin = time.monotonic()
        try:
            await self._converse(call, requests, outcome)
        # grpc refuses some metadata and some method names itself.
        except (ValueError, TypeError, UnicodeError, grpc.aio.UsageError, grpc.aio.InternalError) as error:
            outcome.not_sent = repr(error)
        outcome.seconds = time.monotonic() - begin
        return outcome

    async def _converse(self, call: Call, requests: list[bytes], outcome: Outcome) -> None:
        stream = self.channel.stream_stream(call.method.path)(
            timeout=max(call.after_ms, 1) / 1000 if call.behaviour == SHORT_DEADLINE else DEADLINE_SECONDS,
            metadata=call.metadata or None,
            compression=grpc.Compression.Gzip if call.gzip else None,
        )
        if call.behaviour == CANCEL:
            asyncio.get_running_loop().call_later(call.after_ms / 1000, stream.cancel)
        # A task of its own: a write to a call that was cancelled before it began never returns.
        writing = asyncio.ensure_future(_write(stream, requests, half_close=call.behaviour != NO_HALF_CLOSE))
        try:
            ended = await self._read(call, stream, outcome)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            ended = True
        writing.cancel()
        if not ended:
            stream.cancel()
            return
        outcome.details = await stream.details() or ""
        if outcome.details == "Internal error from Core":
            # grpc.aio's own, in place of the status of a call that the server ended while this client still wrote.
            outcome.not_sent = "status lost"
            return
        outcome.code = await stream.code()
        outcome.trailers = dict(await stream.trailing_metadata() or ())

    async def _read(self, call: Call, stream: Any, outcome: Outcome) -> bool:
        """Reads to the end; False: the call goes on, and nobody wants more of it."""
        # The transport waits for the request of a method that takes one, whatever this side says of its end.
        may_wait = call.method.name in _MAY_WAIT or call.behaviour == NO_HALF_CLOSE or not call.frames
        while True:
            reading = asyncio.ensure_future(stream.read())
            await asyncio.wait({reading}, timeout=_SILENCE_SECONDS if may_wait else None)
            if not reading.done():
                reading.cancel()
                return False
            response = reading.result()
            if response is _END:
                return True
            outcome.responses.append(response)
            if len(outcome.responses) >= _MOST_RESPONSES or call.behaviour == READ_ONE:
                return False


async def _write(stream: Any, requests: list[bytes], *, half_close: bool) -> None:
    try:
        for request in requests:
            await stream.write(request)
        if half_close:
            await stream.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # it has ended; why, its status tells


def judge(outcome: Outcome) -> list[Problem]:
    """What is wrong with how a call ended."""
    call, code = outcome.call, outcome.code
    if outcome.not_sent or code is None:
        return []
    if code is grpc.StatusCode.OK:
        return _judge_responses(outcome)
    if call.behaviour == CANCEL and code is grpc.StatusCode.CANCELLED:
        return []
    if call.behaviour == SHORT_DEADLINE and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return []
    transport = any(code is kind and text in outcome.details for kind, text in _TRANSPORT)
    if transport:
        return []
    found: list[Problem] = []
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED):
        found.append(_problem(outcome, f"ended with {code.name}"))
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        found.append(_problem(outcome, f"hung: no answer in {DEADLINE_SECONDS:g} s"))
    elif code is grpc.StatusCode.UNAVAILABLE and not _may_be_unavailable(outcome):
        found.append(_problem(outcome, "ended with UNAVAILABLE"))
    if call.method.ours and not found:
        found += _judge_details(outcome)
    return found


def _may_be_unavailable(outcome: Outcome) -> bool:
    cut_off = outcome.reason == _MAY_BE_CUT_OFF and len(outcome.requests) > 1
    return outcome.reason in _MAY_BE_UNAVAILABLE or cut_off


def _judge_responses(outcome: Outcome) -> list[Problem]:
    descriptor = outcome.call.method.response
    if descriptor is None:
        return [_problem(outcome, "a method that nobody has answers")]
    kind = GetMessageClass(descriptor)
    for response in outcome.responses:
        try:
            kind.FromString(response)
        except DecodeError:
            return [_problem(outcome, "its response is no message of its type")]
    if not outcome.call.method.server_streaming and len(outcome.responses) != 1:
        return [_problem(outcome, f"OK with {len(outcome.responses)} responses")]
    return []


def _judge_details(outcome: Outcome) -> list[Problem]:
    packed = outcome.trailers.get(DETAILS_TRAILER)
    if not isinstance(packed, bytes):
        return [_problem(outcome, "an error without google.rpc.Status")]
    status = status_pb2.Status.FromString(packed)
    infos = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            infos.append(info)
    assert outcome.code is not None
    if len(infos) != 1 or not _REASON.fullmatch(infos[0].reason) or infos[0].domain != DOMAIN:
        return [_problem(outcome, f"an error with {len(infos)} ErrorInfo: {infos}")]
    if status.code != outcome.code.value[0] or outcome.reason != infos[0].reason or not status.message:
        return [_problem(outcome, f"a status that contradicts its details: {status}")]
    return []


def _problem(outcome: Outcome, what: str) -> Problem:
    # Numbers, ids and quoted values differ from case to case of one defect.
    kind = re.sub(r"'[^']*'|\"[^\"]*\"|[0-9a-f]{8,}|\d+", "*", outcome.details)[:120]
    return Problem(f"{outcome.call.method.path} {what} {outcome.reason} {kind}", f"{describe(outcome)}\n  {what}")


def describe(outcome: Outcome) -> str:
    """A call and its end, with the bytes that were sent."""
    call = outcome.call
    lines = [f"{call.method.path} ({call.behaviour} {call.after_ms} ms, metadata {call.metadata}, gzip {call.gzip})"]
    lines += [f"  request {shown(call.method, each)}" for each in outcome.requests]
    code = outcome.code.name if outcome.code else outcome.not_sent or "not ended"
    lines.append(f"  -> {code} {outcome.reason} {outcome.details[:500]!r} after {outcome.seconds:.2f} s")
    return "\n".join(lines)


def shown(method: Method, data: bytes) -> str:
    """Bytes in hex, and as the message that they are."""
    text = data.hex() if len(data) <= 300 else f"{data[:100].hex()}... ({len(data)} bytes)"
    if method.request is None or len(data) > 20_000:
        return text
    try:
        message = GetMessageClass(method.request).FromString(data)
    except DecodeError:
        return f"{text} (no {method.request.name})"
    return f"{text} = {method.request.name}({str(message)[:600]!r})"
