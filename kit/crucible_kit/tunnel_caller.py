"""The kitchen's end of a tunnel: it begins the calls."""

from __future__ import annotations

import time
from collections.abc import Mapping

from crucible.adapter.v1 import gateway_pb2
from crucible_kit.errors import REASON_TRAILER, KitchenError, ResourceExhaustedError, UnavailableError, from_status
from crucible_kit.tunnel_mux import MAX_CALLS, WINDOW_BYTES, Part, frame_invalid
from crucible_kit.tunnel_stream import TunnelEnd, TunnelStream

RETRY_SECONDS = 1.0

CallStream = TunnelStream[gateway_pb2.AttachResponse]


def adapter_detached(name: str, problem: str) -> UnavailableError:
    """The error of a call that no adapter, or none any more, is attached for."""
    return UnavailableError(
        f"attach:{name}: {problem}", reason="ADAPTER_DETACHED", metadata={"attachment": name}, retry_delay=RETRY_SECONDS
    )


class CallerTunnel(TunnelEnd[gateway_pb2.AttachResponse]):
    """Begins calls of an adapter that has attached, and hands out what it answers.

    Attributes:
        silence: the Pings that were sent since the adapter's last frame.

    Args:
        name: what it has attached as.
        hello: what it has introduced itself with.
    """

    def __init__(self, name: str, hello: gateway_pb2.Hello) -> None:
        super().__init__(_credit)
        self.silence = 0
        self._pings = 0
        self._name = name
        self._send_window = hello.window_bytes or WINDOW_BYTES
        self._max_calls = hello.max_calls or MAX_CALLS
        self._draining = False

    async def tunnel(self, seconds: float | None) -> CallerTunnel:
        """Itself: a TunnelChannel over this one tunnel looks for no other."""
        return self

    @property
    def open(self) -> bool:
        """Whether it takes calls."""
        return not self._draining

    def call(self, method: str, *, deadline: float | None, metadata: Mapping[str, str]) -> CallStream:
        """Begins a call. Its owner ends it with `cancel`, which does nothing when it has ended.

        Args:
            deadline: in time.monotonic() seconds; None: none.

        Raises:
            UnavailableError: ADAPTER_DETACHED, the adapter goes or has gone.
            ResourceExhaustedError: TOO_MANY_IN_FLIGHT.
        """
        if self._draining:
            raise adapter_detached(self._name, "the adapter is about to go")
        if len(self.multiplexer) >= self._max_calls:
            raise too_many_in_flight(self._name, self._max_calls)
        stream = TunnelStream(self.multiplexer, _Form(method, deadline, metadata), send_window=self._send_window)
        self.multiplexer.begin(stream)
        return stream

    def cancel(self, stream: CallStream, error: KitchenError | None = None) -> None:
        """Ends a call that has not ended, with an error for whoever reads it, and tells the adapter."""
        if stream.over:
            return
        if stream.call_id:
            cancel = gateway_pb2.CallCancel(call_id=stream.call_id)
            self.multiplexer.steer(gateway_pb2.AttachResponse(cancel=cancel))
        if error is None:
            stream.close()
        else:
            stream.fail(error)
        self._settle()

    def dispatch(self, frame: gateway_pb2.AttachRequest) -> None:
        """Takes a frame of the adapter, after Hello. Raises FrameError."""
        self.silence = 0
        match frame.WhichOneof("frame"):
            case "output":
                self._take_output(frame.output)
            case "end":
                self._take_end(frame.end)
            case "credit":
                self.multiplexer.add_credit(frame.credit.call_id, frame.credit.bytes)
            case "drain":
                self.drain(frame.drain.reason)
            case "pong":
                pass
            case kind:
                raise frame_invalid(f"a frame is {'a second Hello' if kind else 'empty'}")
        self._settle()

    def _take_output(self, output: gateway_pb2.CallOutput) -> None:
        stream = self._find(output.call_id)
        if stream is None:
            return
        payload = output.message if output.HasField("message") else None
        _accept(self, stream, Part(payload, output.more, output.end))
        if output.end:
            stream.close()

    def _take_end(self, end: gateway_pb2.CallEnd) -> None:
        stream = self._find(end.call_id)
        if stream is None:
            return
        if end.HasField("failure"):
            hint = end.failure.reason or end.trailers.get(REASON_TRAILER, "")
            stream.fail(from_status(end.failure.status, reason_hint=hint))
        else:
            _accept(self, stream, Part(None, last=True))
            stream.close()

    def _find(self, call_id: int) -> CallStream | None:
        found = self.multiplexer.find(call_id)
        assert found is None or isinstance(found, TunnelStream)
        return found

    def ping(self) -> None:
        """Asks the adapter for a sign of life."""
        self.silence += 1
        self._pings += 1
        self.multiplexer.steer(gateway_pb2.AttachResponse(ping=gateway_pb2.Ping(nonce=self._pings)))

    def drain(self, reason: str) -> None:
        """Begins no more calls, and ends `outgoing` when none is in flight."""
        if not self._draining:
            self._draining = True
            self.multiplexer.steer(gateway_pb2.AttachResponse(drain=gateway_pb2.Drain(reason=reason)))
            self._settle()

    def detach(self, problem: str) -> None:
        """Ends all calls with ADAPTER_DETACHED, and `outgoing`."""
        self._draining = True
        for stream in self.multiplexer.calls:
            assert isinstance(stream, TunnelStream)
            stream.fail(adapter_detached(self._name, problem))
        self.finish()

    def _settle(self) -> None:
        if self._draining and not len(self.multiplexer):
            self.finish()


def too_many_in_flight(name: str, limit: int) -> ResourceExhaustedError:
    """The error of a call past an adapter's limit."""
    return ResourceExhaustedError(
        f"{name} takes {limit} calls at a time, and has them: try again when some are done",
        reason="TOO_MANY_IN_FLIGHT",
        metadata={"max_calls": limit},
        retry_delay=RETRY_SECONDS,
    )


def _accept(tunnel: CallerTunnel, stream: CallStream, part: Part) -> None:
    try:
        tunnel.multiplexer.accept(stream, part)
    except KitchenError as error:
        if error.reason != "MESSAGE_TOO_LARGE":
            raise
        tunnel.cancel(stream, error)


def _credit(call_id: int, amount: int) -> gateway_pb2.AttachResponse:
    return gateway_pb2.AttachResponse(credit=gateway_pb2.Credit(call_id=call_id, bytes=amount))


class _Form:
    """The frames of one call: the first is a CallStart."""

    def __init__(self, method: str, deadline: float | None, metadata: Mapping[str, str]) -> None:
        self._method = method
        self._deadline = deadline
        self._metadata = metadata
        self._begun = False

    def __call__(self, call: CallStream, part: Part) -> gateway_pb2.AttachResponse:
        fields = {"call_id": call.call_id, "message": part.payload, "more": part.more, "half_closed": part.last}
        if self._begun:
            return gateway_pb2.AttachResponse(input=gateway_pb2.CallInput(**fields))
        self._begun = True
        start = gateway_pb2.CallStart(method=self._method, metadata=self._metadata, **fields)
        if self._deadline is not None:
            start.timeout.FromNanoseconds(max(0, int((self._deadline - time.monotonic()) * 1e9)))
        return gateway_pb2.AttachResponse(start=start)
