"""The interceptor on a real socket, asked by a client that has none of our code in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible_kit.boundary import BoundaryInterceptor
from crucible_kit.errors import (
    FieldViolation,
    InvalidArgumentError,
    UnauthenticatedError,
    from_rpc_error,
)
from crucible_kit.serving import bind, new_server
from tests.kit.notes import SECRET, SERVICE, ScriptedBlobs
from tests.stalls import longer

Raw = Callable[..., Any]


@asynccontextmanager
async def served(servicer: Any, **settings: Any) -> AsyncIterator[grpc.aio.Channel]:
    server = new_server([BoundaryInterceptor(**settings)])
    blob_pb2_grpc.add_BlobStoreServiceServicer_to_server(servicer, server)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    try:
        async with grpc.aio.insecure_channel(address, options=limits) as channel:
            yield channel
    finally:
        await server.stop(0)


def stat(channel: grpc.aio.Channel) -> Raw:
    """StatBlob with the request as raw bytes."""
    return channel.unary_unary(f"/{SERVICE}/StatBlob", response_deserializer=blob_pb2.StatBlobResponse.FromString)


def read(channel: grpc.aio.Channel) -> Raw:
    return channel.unary_stream(f"/{SERVICE}/ReadBlob", response_deserializer=blob_pb2.ReadBlobResponse.FromString)


def write(channel: grpc.aio.Channel) -> Raw:
    return channel.stream_unary(f"/{SERVICE}/WriteBlob", response_deserializer=blob_pb2.WriteBlobResponse.FromString)


def stat_request(key: str) -> bytes:
    return blob_pb2.StatBlobRequest(key=key).SerializeToString()


def read_request(key: str, limit: int = 1) -> bytes:
    return blob_pb2.ReadBlobRequest(key=key, limit=limit).SerializeToString()


async def refused(call: Any) -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and message of a call that must fail, after checking that all places of the reason agree."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__await__"):
            await call
        else:
            async for _ in call:
                pass
    error = caught.value
    trailers: dict[str, Any] = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    assert (info.domain, info.reason) == ("crucible.kitchen", trailers["crucible-reason"])
    return error.code(), info.reason, str(error.details())


async def test_a_bug_leaks_nothing_and_is_found_in_the_log_by_its_id(caplog: pytest.LogCaptureFixture) -> None:
    async with served(ScriptedBlobs()) as channel:
        for start in (lambda: stat(channel)(stat_request("bug")), lambda: read(channel)(read_request("bug"))):
            caplog.clear()
            with caplog.at_level(logging.ERROR):
                code, reason, message = await refused(start())
            assert (code, reason) == (grpc.StatusCode.INTERNAL, "INTERNAL_BUG")
            assert SECRET not in message
            error_id = message.removeprefix("internal error ").split(":")[0]
            assert error_id in caplog.text
            assert SECRET in caplog.text


async def test_a_handler_that_raises_cancelled_does_not_hang_its_client() -> None:
    async with served(ScriptedBlobs()) as channel:
        for call in (stat(channel)(stat_request("cancelled")), read(channel)(read_request("cancelled"))):
            assert (await refused(call))[:2] == (grpc.StatusCode.UNAVAILABLE, "INTERRUPTED")


async def test_malformed_bytes() -> None:
    async with served(ScriptedBlobs()) as channel:
        for call in (stat(channel)(b"\x0a\xff"), read(channel)(b"\x0a\xff"), write(channel)(iter([b"\x0a\xff"]))):
            assert (await refused(call))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED")


async def test_text_that_is_not_utf8() -> None:
    async with served(ScriptedBlobs()) as channel:
        assert (await refused(stat(channel)(b"\x0a\x01\xff")))[1] == "MESSAGE_MALFORMED"


async def test_unknown_fields_and_broken_rules_are_refused_before_the_handler() -> None:
    blobs = ScriptedBlobs()
    async with served(blobs) as channel:
        code, reason, message = await refused(stat(channel)(stat_request("k") + b"\xc0\x3e\x01"))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_UNKNOWN")
        assert "#1000" in message
        code, reason, message = await refused(stat(channel)(b""))
        assert (code, reason, message) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "FIELD_INVALID",
            "key: required, but absent or empty",
        )
    assert blobs.seen == {}


async def test_each_message_of_a_request_stream_is_checked() -> None:
    too_long = blob_pb2.WriteBlobRequest(chunk=blob_pb2.BlobChunk(data=b"x" * 262_145)).SerializeToString()
    first = blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key="k")).SerializeToString()
    async with served(ScriptedBlobs()) as channel:
        _, reason, message = await refused(write(channel)(iter([first, too_long])))
    assert reason == "FIELD_INVALID"
    assert message.startswith("chunk.data:")


async def test_the_size_limit_of_a_prefix() -> None:
    limits = {f"/{SERVICE}/Stat": 20, "/crucible.": 200}
    async with served(ScriptedBlobs(), max_bytes=limits) as channel:
        await stat(channel)(stat_request("x" * 18))
        code, reason, message = await refused(stat(channel)(stat_request("x" * 19)))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE")
        assert "21 bytes, at most 20" in message
        async for _ in read(channel)(read_request("x" * 100)):
            pass
        assert (await refused(read(channel)(read_request("x" * 200))))[1] == "MESSAGE_TOO_LARGE"


async def test_the_servers_own_limit_of_32_mib() -> None:
    async with served(ScriptedBlobs()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stat(channel)(b"\0" * (32 * 1024 * 1024 + 1))
        assert from_rpc_error(caught.value).reason == "MESSAGE_TOO_LARGE"
        await stat(channel)(stat_request("fine"))


def deny(method: str, metadata: Any) -> None:
    if metadata.get("authorization") != "Bearer right":
        raise UnauthenticatedError(f"{method} needs a token", reason="TOKEN_MISSING")


async def test_the_guard_refuses_every_kind_of_call() -> None:
    blobs = ScriptedBlobs()
    async with served(blobs, guard=deny) as channel:
        unknown = channel.unary_unary("/elsewhere.Service/Do")
        for call in (
            stat(channel)(stat_request("fine")),
            read(channel)(read_request("fine")),
            write(channel)(iter([b""])),
            unknown(b""),
        ):
            assert (await refused(call))[:2] == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
        assert blobs.seen == {}
        await stat(channel)(stat_request("fine"), metadata=(("authorization", "Bearer right"),))


async def test_a_guard_that_fails_lets_nobody_in_and_tells_nothing() -> None:
    def broken(method: str, metadata: Any) -> None:
        raise KeyError(SECRET)

    async with served(ScriptedBlobs(), guard=broken) as channel:
        code, reason, message = await refused(stat(channel)(stat_request("fine")))
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "INTERNAL_BUG")
    assert SECRET not in message


async def test_methods_that_nobody_wrote_or_serves() -> None:
    async with served(ScriptedBlobs()) as channel:
        for path in (f"/{SERVICE}/ListBlobs", f"/{SERVICE}/Nothing", "/elsewhere.Service/Do"):
            result = await refused(channel.unary_unary(path)(b""))
            assert result[:2] == (grpc.StatusCode.UNIMPLEMENTED, "METHOD_MISSING")


async def test_a_unary_call_without_a_deadline_is_ended() -> None:
    blobs = ScriptedBlobs()
    async with served(blobs, unary_timeout=0.05) as channel:
        code, reason, _ = await refused(stat(channel)(stat_request("hang")))
        assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert blobs.left.is_set()


async def test_the_clients_deadline_and_cancel_reach_the_handlers_finally() -> None:
    blobs = ScriptedBlobs()
    async with served(blobs) as channel:
        for seconds in longer(0.05):
            with pytest.raises(grpc.aio.AioRpcError):
                await stat(channel)(stat_request("hang"), timeout=seconds)
            if blobs.entered.is_set():
                break
        await asyncio.wait_for(blobs.left.wait(), 10)

        blobs.entered.clear()
        blobs.left.clear()
        stream = read(channel)(read_request("hang"))
        await stream.read()
        await asyncio.wait_for(blobs.entered.wait(), 10)
        stream.cancel()
        await asyncio.wait_for(blobs.left.wait(), 10)


async def test_the_largest_error_arrives_whole_enough() -> None:
    """gRPC drops trailers past 8 KiB, and the status with them."""

    class Verbose(blob_pb2_grpc.BlobStoreServiceServicer):
        async def StatBlob(self, request: Any, context: Any) -> Any:
            raise InvalidArgumentError(
                "字" * 9999,
                reason="LONG_STORY",
                metadata={f"k{index}": "é" * 999 for index in range(30)},
                fields=[FieldViolation("ß" * 999, "字" * 999)] * 30,
            )

    async with served(Verbose()) as channel:
        for _ in range(20):  # between the soft and the hard limit it drops some by chance
            assert (await refused(stat(channel)(stat_request("k"))))[1] == "LONG_STORY"


async def test_a_caller_that_leaves_while_it_is_refused_ends_the_call_as_one_that_leaves() -> None:
    """gRPC's core then fails to send the status; raised on, that would be an error in the server's log."""

    class Left:
        def time_remaining(self) -> float:
            return 1.0

        async def abort_with_status(self, status: Any) -> None:
            raise grpc.aio.InternalError('Failed "execute_batch"')

    async def continuation(details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            ScriptedBlobs().StatBlob, request_deserializer=blob_pb2.StatBlobRequest.FromString
        )

    details = SimpleNamespace(method=f"/{SERVICE}/StatBlob", invocation_metadata=())
    handler = await BoundaryInterceptor().intercept_service(continuation, details)
    with pytest.raises(asyncio.CancelledError):
        await handler.unary_unary(stat_request(""), Left())
