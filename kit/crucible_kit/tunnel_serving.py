"""The adapter's end of a tunnel: it serves the calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message

from crucible.adapter.v1 import gateway_pb2
from crucible_kit._object_channel import Servicers
from crucible_kit.errors import InvalidArgumentError, KitchenError, to_failure
from crucible_kit.outcomes import hidden, method_missing
from crucible_kit.parsing import Parser, parse_in_turn, request_parser
from crucible_kit.tunnel_caller import too_many_in_flight
from crucible_kit.tunnel_mux import MAX_CALLS, WINDOW_BYTES, Part, frame_invalid
from crucible_kit.tunnel_stream import TunnelEnd, TunnelStream

# Of a call without a deadline, as the boundary of a server has it.
_UNARY_SECONDS = 600.0


class _Method(NamedTuple):
    parse: Parser
    takes_stream: bool
    answers_stream: bool


class ServedStream(TunnelStream[gateway_pb2.AttachRequest]):
    """A call that lasts until its last frame has left."""

    def left(self) -> None:
        self.close()


class ServingTunnel(TunnelEnd[gateway_pb2.AttachRequest]):
    """Says Hello, and serves what the kitchen calls, with the checks, deadlines and errors of a server's boundary.

    Attributes:
        welcome: what the kitchen has answered to Hello; None: nothing yet.

    Args:
        servicers: by full service name.
        hello: its introduction, whose limits it keeps.
    """

    def __init__(self, servicers: Mapping[str, Any], hello: gateway_pb2.Hello) -> None:
        super().__init__(_credit)
        self.welcome: gateway_pb2.Welcome | None = None
        self._servicers = Servicers(servicers, peer=f"attach:{hello.name}")
        self._methods = _methods(servicers)
        self._name = hello.name
        self._send_window = WINDOW_BYTES
        self._receive_window = hello.window_bytes or WINDOW_BYTES
        self._max_calls = hello.max_calls or MAX_CALLS
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.multiplexer.steer(gateway_pb2.AttachRequest(hello=hello))

    def dispatch(self, frame: gateway_pb2.AttachResponse) -> None:
        """Takes a frame of the kitchen; one of a kind that it does not know is ignored. Raises FrameError."""
        kind = frame.WhichOneof("frame")
        if (self.welcome is None) != (kind == "welcome"):
            raise frame_invalid(
                f"{kind or 'an empty frame'} comes {'before' if self.welcome is None else 'after'} Welcome"
            )
        match kind:
            case "welcome":
                self.welcome = frame.welcome
                self._send_window = frame.welcome.window_bytes or WINDOW_BYTES
            case "start":
                self._start(frame.start)
            case "input":
                stream = self.multiplexer.find(frame.input.call_id)
                if stream is not None:
                    self._accept(stream, frame.input)
            case "cancel":
                stream = self.multiplexer.find(frame.cancel.call_id)
                if stream is not None:
                    self._end(stream)
            case "credit":
                self.multiplexer.add_credit(frame.credit.call_id, frame.credit.bytes)
            case "ping":
                self.multiplexer.steer(gateway_pb2.AttachRequest(pong=gateway_pb2.Pong(nonce=frame.ping.nonce)))
            case _:
                pass

    def drain(self) -> None:
        """Asks the kitchen for no more calls, and for the end when those in flight are answered."""
        self.multiplexer.steer(gateway_pb2.AttachRequest(drain=gateway_pb2.Drain(reason="DRAINING")))

    async def close(self) -> None:
        """Cancels the calls in flight, waits for them, and ends `outgoing`."""
        for stream in self.multiplexer.calls:
            self._end(stream)
        self.finish()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, start: gateway_pb2.CallStart) -> None:
        stream = ServedStream(
            self.multiplexer,
            _output,
            call_id=start.call_id,
            send_window=self._send_window,
            receive_window=self._receive_window,
        )
        self.multiplexer.accept_call(stream)
        if len(self.multiplexer) > self._max_calls:
            self._refuse(stream, too_many_in_flight(self._name, self._max_calls))
            return
        task = asyncio.create_task(self._serve(stream, start))
        self._tasks[start.call_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(start.call_id, None))
        if start.HasField("message") or start.half_closed:
            self._accept(stream, start)

    def _accept(self, stream: Any, frame: gateway_pb2.CallStart | gateway_pb2.CallInput) -> None:
        payload = frame.message if frame.HasField("message") else None
        try:
            self.multiplexer.accept(stream, Part(payload, frame.more, frame.half_closed))
        except KitchenError as error:
            if error.reason != "MESSAGE_TOO_LARGE":
                raise
            self._refuse(stream, error)

    def _refuse(self, stream: Any, error: KitchenError) -> None:
        self.multiplexer.steer(self._failed(stream.call_id, error))
        self._end(stream)

    def _end(self, stream: Any) -> None:
        """Ends a call here, whose answer nobody waits for any more."""
        stream.close()
        task = self._tasks.get(stream.call_id)
        if task is not None:
            task.cancel()

    async def _serve(self, stream: ServedStream, start: gateway_pb2.CallStart) -> None:
        try:
            await self._answer(stream, start)
        except KitchenError as error:
            stream.finish(self._failed(stream.call_id, error))
        except Exception as error:
            stream.finish(self._failed(stream.call_id, hidden(start.method, error)))

    async def _answer(self, stream: ServedStream, start: gateway_pb2.CallStart) -> None:
        method = self._methods.get(start.method)
        if method is None:
            raise method_missing(start.method)
        metadata = tuple(start.metadata.items())
        timeout = start.timeout.ToNanoseconds() / 1e9 if start.HasField("timeout") else None
        requests = _requests(stream, method.parse)
        request = requests if method.takes_stream else await _only(requests, start.method)
        if method.answers_stream:
            async with aclosing(self._servicers.stream(start.method, request, timeout, metadata)) as responses:
                async for response in responses:
                    await stream.send(response.SerializeToString())
        else:
            limit = _UNARY_SECONDS if timeout is None else timeout
            response = await self._servicers.answer(start.method, request, limit, metadata)
            stream.push(response.SerializeToString())
        stream.finish()

    def _failed(self, call_id: int, error: KitchenError) -> gateway_pb2.AttachRequest:
        end = gateway_pb2.CallEnd(call_id=call_id, failure=to_failure(error, source=self._name))
        return gateway_pb2.AttachRequest(end=end)


async def _requests(stream: ServedStream, parse: Parser) -> AsyncIterator[Message]:
    while (data := await stream.receive()) is not None:
        yield await parse_in_turn(parse, data)


async def _only(requests: AsyncIterator[Message], method: str) -> Message:
    async for request in requests:
        return request
    raise InvalidArgumentError(
        f"the request of {method} has no message: send one before the end of the input", reason="MESSAGE_MISSING"
    )


def _methods(services: Mapping[str, Any]) -> dict[str, _Method]:
    found = {}
    for service in services:
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            path = f"/{service}/{method.name}"
            parse = request_parser(path, message_factory.GetMessageClass(method.input_type).FromString)
            found[path] = _Method(parse, method.client_streaming, method.server_streaming)
    return found


def _credit(call_id: int, amount: int) -> gateway_pb2.AttachRequest:
    return gateway_pb2.AttachRequest(credit=gateway_pb2.Credit(call_id=call_id, bytes=amount))


def _output(call: Any, part: Part) -> gateway_pb2.AttachRequest:
    output = gateway_pb2.CallOutput(call_id=call.call_id, message=part.payload, more=part.more, end=part.last)
    return gateway_pb2.AttachRequest(output=output)
