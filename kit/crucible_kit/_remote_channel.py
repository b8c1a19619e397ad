"""A channel to a gRPC address."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from crucible_kit.constraints import check_message
from crucible_kit.errors import CONNECTION_LOST, UnavailableError, from_rpc_error
from crucible_kit.outcomes import deadline_exceeded, task_is_cancelled
from crucible_kit.parsing import check_aside

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
DEFAULT_UNARY_TIMEOUT = 60.0
DEFAULT_READY_SECONDS = 30.0
# How often a call is made whose connection breaks each time: the adapter may be dying of this very call.
_TRIES = 3
_RETRY_SECONDS = 1.0

Result = TypeVar("Result")


async def repeated(call: Callable[[], Awaitable[Result]]) -> Result:
    """The result of a call or a whole transfer that is safe to repeat: it is made again when its connection breaks.

    Each try waits for the other side as any call does; when that is in vain, its error is raised.
    """
    for _ in range(_TRIES - 1):
        try:
            return await call()
        except UnavailableError as error:
            if error.reason not in CONNECTION_LOST:
                raise
    return await call()


class RemoteChannel:
    """A gRPC channel whose calls raise KitchenError and have a deadline.

    A unary call whose connection breaks is made again, unless it is one of NOT_REPEATED; one that streams is its
    caller's to repeat, see `repeated`.

    Args:
        address: where it leads, for messages.
        wait_for_ready: wait for a connection, so that an adapter that is just starting or coming back is waited for;
            otherwise a call fails with UNAVAILABLE when nobody listens, and is not made again.
        ready_seconds: how long it waits, within the call's deadline; then the call fails with UNAVAILABLE
            ADAPTER_UNAVAILABLE.
        metadata: sent with every call.
        check: refuses a request before it leaves.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        address: str = "",
        wait_for_ready: bool = True,
        ready_seconds: float = DEFAULT_READY_SECONDS,
        metadata: Iterable[tuple[str, str]] = (),
        check: Callable[[Message], None] = check_message,
    ) -> None:
        self._channel = channel
        self._address = address
        self._wait = wait_for_ready
        self._ready_seconds = ready_seconds
        self._metadata = tuple(metadata)
        self._check = check

    async def _options(self, timeout: float | None, metadata: Any) -> dict[str, Any]:
        """The keywords of a call that may take `timeout` seconds, once there is a connection."""
        return {"timeout": await self._ready(timeout), "metadata": (*self._metadata, *(metadata or ()))}

    async def _ready(self, timeout: float | None) -> float | None:
        """Waits for the connection; returns what is left of `timeout`."""
        if not self._wait or self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return timeout
        # Not gRPC's own wait_for_ready, which goes on for the whole deadline: of a large transfer that is an hour.
        begun = time.monotonic()
        limit = self._ready_seconds if timeout is None else min(timeout, self._ready_seconds)
        try:
            async with asyncio.timeout(limit):
                await self._channel.channel_ready()
        except TimeoutError:
            raise UnavailableError(
                f"nobody has answered at {self._address} for {limit:g} s: start what serves there, and use TLS on both "
                "sides or on none",
                reason="ADAPTER_UNAVAILABLE",
                metadata={"address": self._address},
                retry_delay=_RETRY_SECONDS,
            ) from None
        return None if timeout is None else max(0.0, begun + timeout - time.monotonic())

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a unary method."""
        inner = self._channel.unary_unary(method, *args, **kwargs)
        _, service, name = method.split("/")
        repeatable = name not in NOT_REPEATED.get(service, ())

        async def call(request: Message, *, timeout: float | None = None, metadata: Any = None) -> Message:
            await check_aside(request, self._check)
            end = time.monotonic() + (DEFAULT_UNARY_TIMEOUT if timeout is None else timeout)

            async def once() -> Message:
                options = await self._options(max(0.0, end - time.monotonic()), metadata)
                with _kitchen_errors(method, options["timeout"], []):
                    return await inner(request, **options)

            return await (repeated(once) if self._wait and repeatable else once())

        return call

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that answers with a stream."""
        inner = self._channel.unary_stream(method, *args, **kwargs)

        def call(request: Message, *, timeout: float | None = None, metadata: Any = None) -> AsyncIterator[Message]:
            self._check(request)

            async def start() -> Any:
                return inner(request, **await self._options(timeout, metadata))

            return _responses(method, timeout, start, [])

        return call

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that takes a stream."""
        inner = self._channel.stream_unary(method, *args, **kwargs)

        async def call(
            requests: AsyncIterable[Message], *, timeout: float | None = None, metadata: Any = None
        ) -> Message:
            options = await self._options(DEFAULT_UNARY_TIMEOUT if timeout is None else timeout, metadata)
            failures: list[Exception] = []
            with _kitchen_errors(method, options["timeout"], failures):
                return await inner(prepared(requests, self._checked, failures), **options)

        return call

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The call of a method that takes and answers with a stream."""
        inner = self._channel.stream_stream(method, *args, **kwargs)

        def call(
            requests: AsyncIterable[Message], *, timeout: float | None = None, metadata: Any = None
        ) -> AsyncIterator[Message]:
            failures: list[Exception] = []

            async def start() -> Any:
                options = await self._options(timeout, metadata)
                return inner(prepared(requests, self._checked, failures), **options)

            return _responses(method, timeout, start, failures)

        return call

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known now. Asks nobody."""
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

    def _checked(self, message: Message) -> Message:
        self._check(message)
        return message

    def waiting(self) -> RemoteChannel:
        """This connection for calls that wait for their whole deadline until the other side listens."""
        return self._with(wait_for_ready=True, ready_seconds=math.inf)

    def unchecked(self) -> RemoteChannel:
        """This connection for requests that leave as they are, so that it is the other side that refuses them."""
        return self._with(check=lambda message: None)

    def _with(self, **changes: Any) -> RemoteChannel:
        settings: dict[str, Any] = {
            "address": self._address,
            "wait_for_ready": self._wait,
            "ready_seconds": self._ready_seconds,
            "metadata": self._metadata,
            "check": self._check,
        }
        return RemoteChannel(self._channel, **(settings | changes))

    def at_once(self) -> RemoteChannel:
        """This connection for calls that fail when the other side can't be reached now; their errors say why."""
        return self._with(wait_for_ready=False)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()


async def _responses(
    method: str, limit: float | None, start: Callable[[], Awaitable[Any]], failures: list[Exception]
) -> AsyncIterator[Message]:
    stream = await start()
    try:
        with _kitchen_errors(method, limit, failures):
            async for each in stream:
                yield each
    finally:
        stream.cancel()


@contextmanager
def _kitchen_errors(method: str, limit: float | None, failures: list[Exception]):
    """Raises a failed call as a KitchenError, and what the caller's own stream raised as that."""
    start = time.monotonic()
    try:
        yield
    except asyncio.CancelledError as error:
        if task_is_cancelled():
            raise
        # gRPC answers a request stream that raises by cancelling the call.
        if failures:
            raise failures[0] from None
        # It cancels one that it can't send any more, too, in place of telling how the call has ended.
        if limit is not None and time.monotonic() - start >= limit:
            raise deadline_exceeded(method, limit) from error
        raise UnavailableError(
            f"{method} was ended before it had an answer: send it again", reason="CONNECTION_LOST"
        ) from error
    except grpc.aio.AioRpcError as error:
        if failures:
            raise failures[0] from None
        raise from_rpc_error(error) from error


async def prepared(
    messages: AsyncIterable[Message], prepare: Callable[[Message], Message], failures: list[Exception]
) -> AsyncIterator[Message]:
    """A caller's request stream; what it raises is kept in `failures`, because nobody on the way hands it on."""
    try:
        async for each in messages:
            yield prepare(each)
    except Exception as error:
        failures.append(error)
        raise


# Calls that nobody tries again unasked: they may have effects, or be billed twice.
NOT_REPEATED = {
    "crucible.port.embedding.v1.EmbeddingService": ("EmbedTexts",),
    "crucible.port.evaluator.v1.EvaluatorService": ("Evaluate",),
    "crucible.port.llm.v1.LLMService": ("Chat", "StreamChat"),
    "crucible.port.python_bridge.v1.PythonBridgeService": (
        *("CallFunction", "StreamFunction", "CallMethod", "GetAttribute"),
    ),
}
# Every other method of ours is safe to repeat: mutations carry a request id or a sequence.
_RETRY_UNAVAILABLE = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": service, "method": method}
                    for service, names in NOT_REPEATED.items()
                    for method in names
                ],
            },
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            },
        ]
    }
)


def open_channel(
    address: str, credentials: grpc.ChannelCredentials | None = None, *, retry: bool = True, server_name: str = ""
) -> grpc.aio.Channel:
    """grpc's own channel with our options, for callers that need no stub of ours; connects when first used.

    `server_name`: the name that a TLS server's certificate must have; empty: the address's host.
    """
    # Nobody is bothered by frequent tries on one machine.
    backoff = (100, 250) if address.startswith("unix:") else (1_000, 2_000)
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", backoff[0]),
        ("grpc.max_reconnect_backoff_ms", backoff[1]),
        # A server may come back on the same address; a shared pool would keep its dead connection.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.service_config", _RETRY_UNAVAILABLE if retry else "{}"),
    ]
    if server_name:
        options += [("grpc.ssl_target_name_override", server_name), ("grpc.default_authority", server_name)]
    elif address.startswith("unix:"):
        # The core would send the socket's percent-encoded path, which servers in other languages refuse as no host.
        options.append(("grpc.default_authority", "localhost"))
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def connect(
    address: str,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    token: str = "",
    wait_for_ready: bool = True,
    ready_seconds: float = DEFAULT_READY_SECONDS,
    retry: bool = True,
    server_name: str = "",
) -> RemoteChannel:
    """A channel to a gRPC address: host:port, dns:///host:port or unix:PATH. Connects when first used.

    Args:
        credentials: TLS; None is plain text, for loopback and unix sockets.
        token: sent as a bearer token with every call; empty sends none.
        wait_for_ready, ready_seconds: as in RemoteChannel.
        server_name: the name that a TLS server's certificate must have; empty: the address's host.
        retry: try a call that fails with UNAVAILABLE again, a few times within two seconds; but none that may have
            effects each time, or is billed: calls of Python functions, chat, embeddings, evaluations.
    """
    # As metadata: call credentials are refused on plain text, and one interceptor object covers one kind of call only.
    metadata = [("authorization", f"Bearer {token}")] if token else []
    channel = open_channel(address, credentials, retry=retry, server_name=server_name)
    return RemoteChannel(
        channel, address=address, wait_for_ready=wait_for_ready, ready_seconds=ready_seconds, metadata=metadata
    )
