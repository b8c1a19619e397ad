"""What providers answer in place of a reply, and that no error shows the key."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from crucible.port.llm.v1 import llm_pb2 as pb
from crucible_kit.errors import (
    DataLossError,
    DeadlineExceededError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.llm.conftest import KEY, Make, chat, stream, user
from tests.llm.server import Answer, Server, event
from tests.llm.wires import MODEL, AnthropicWire, GoogleWire, OpenAIWire, Wire
from tests.providers import Waits

KINDS = {
    400: (InvalidArgumentError, "PROVIDER_REFUSED_REQUEST"),
    401: (UnauthenticatedError, "PROVIDER_CREDENTIALS"),
    402: (ResourceExhaustedError, "QUOTA_EXHAUSTED"),
    403: (PermissionDeniedError, "PROVIDER_FORBIDDEN"),
    404: (NotFoundError, "MODEL_NOT_FOUND"),
    422: (InvalidArgumentError, "PROVIDER_REFUSED_REQUEST"),
    429: (ResourceExhaustedError, "RATE_LIMITED"),
    500: (UnavailableError, "PROVIDER_UNAVAILABLE"),
    503: (UnavailableError, "PROVIDER_UNAVAILABLE"),
}
RETRIED = (429, 500, 503)


async def both(stub: Any) -> list[KitchenError]:
    """How a call and a stream end."""
    found: list[KitchenError] = []
    for call in (chat(stub, "Hello"), stream(stub, "Hello")):
        with pytest.raises(KitchenError) as caught:
            await call
        found.append(caught.value)
    return found


async def test_every_status_has_its_error(wire: Wire, make: Make, server: Server, waits: Waits) -> None:
    stub = await make(wire, retries={"tries": 3, "initial_backoff_seconds": 2, "jitter": 0.5})
    for status, (kind, reason) in KINDS.items():
        before, waits.told = len(server.asked), []
        server.will(wire.error(status, f"It is {status}, not {KEY}."))
        for error in await both(stub):
            assert (type(error), error.reason) == (kind, reason), error.message
            assert error.metadata["provider"] == wire.name and error.metadata["http_status"] == str(status)
            assert (f"It is {status}" in error.message) == (status != 401)
            assert error.retry_delay == (4.0 if status == 429 else None)
            assert KEY not in repr((error.message, error.metadata, error.fields))
        tries = 3 if status in RETRIED else 1
        assert len(server.asked) - before == 2 * tries
        # Twice as long each time, less the jitter's share of it.
        assert waits.told == ([1.0, 2.0] * 2 if tries == 3 else [])


async def test_retry_after_is_waited_for_and_then_the_reply_comes(
    wire: Wire, make: Make, server: Server, waits: Waits
) -> None:
    limited = wire.error(429, "Slow down.", headers={"retry-after": "7"})
    server.will(limited, wire.reply("Good day."), limited, Answer.stream(wire.streamed(["Good day."])))
    stub = await make(wire)
    reply = await chat(stub, "Hello")
    assert reply.content == "Good day." and waits.told == [7.0]
    # Of the whole call, the wait too.
    assert reply.meta.latency_ms == 7000.0
    assert (await stream(stub, "Hello"))[-1].reply.content == "Good day."
    assert waits.told == [7.0, 7.0]


async def test_a_retry_after_that_is_too_long_is_the_caller_s(
    wire: Wire, make: Make, server: Server, waits: Waits
) -> None:
    server.will(wire.error(429, "Slow down.", headers={"retry-after": "31"}))
    stub = await make(wire, retries={"longest_backoff_seconds": 30})
    for error in await both(stub):
        assert (error.reason, error.retry_delay) == ("RATE_LIMITED", 31.0)
    # Nor one that ends after the caller's deadline.
    server.will(wire.error(503, "Away.", headers={"retry-after": "20"}))
    with pytest.raises(UnavailableError) as caught:
        await stub.Chat(pb.ChatRequest(messages=[user("Hello")]), timeout=15)
    assert caught.value.retry_delay == 20.0
    assert not waits.told and len(server.asked) == 3


async def test_a_broken_stream_is_asked_for_again_only_before_its_first_piece(
    wire: Wire, make: Make, server: Server
) -> None:
    whole = wire.streamed(["Good ", "day."])
    server.will(Answer.stream([], is_cut=True), Answer.stream([]), Answer.stream(whole))
    stub = await make(wire)
    assert (await stream(stub, "Hello"))[-1].reply.content == "Good day."
    assert len(server.asked) == 3
    first = next(number for number, each in enumerate(whole) if b"Good" in each) + 1
    for end in ({"is_cut": True}, {}):
        server.will(Answer.stream(whole[:first], **end))
        pieces: list[str] = []
        with pytest.raises(UnavailableError) as caught:
            async for each in stub.StreamChat(pb.StreamChatRequest(messages=[user("Hello")])):
                pieces.append(each.content_delta)  # noqa: PERF401 - a comprehension would lose them
        assert pieces == ["Good "] and caught.value.reason == "PROVIDER_UNAVAILABLE"
    assert len(server.asked) == 5


async def test_an_error_within_a_stream_ends_it(wire: Wire, make: Make, server: Server) -> None:
    whole = wire.streamed(["Good ", "day."])
    first = next(number for number, each in enumerate(whole) if b"Good" in each) + 1
    server.will(Answer.stream([*whole[:first], wire.error_event()]))
    stub = await make(wire)
    with refused(UnavailableError, "PROVIDER_UNAVAILABLE"):
        await stream(stub, "Hello")
    # Before the first piece it is tried again.
    server.will(Answer.stream([wire.error_event()]), Answer.stream(whole))
    assert (await stream(stub, "Hello"))[-1].reply.content == "Good day."


async def test_a_body_that_is_no_reply_is_malformed(wire: Wire, make: Make, server: Server) -> None:
    stub = await make(wire)
    bodies = (
        b"{",
        b"[]",
        b'"x"',
        b"{}",
        b'{"content": 3, "choices": [{}], "candidates": [{"content": 3}]}',
        b"\xff\xfe",
    )
    for body in bodies:
        server.will(Answer(body))
        with refused(DataLossError, "PROVIDER_REPLY_MALFORMED"):
            await chat(stub, "Hello")
        assert len(server.asked) == 1, "nothing is asked again"
        server.asked.clear()
    server.will(Answer(b"<html>Welcome</html>", content_type="text/html"))
    with refused(DataLossError, "PROVIDER_REPLY_MALFORMED"):
        await chat(stub, "Hello")
    for broken in (event("{"), event("[1]"), event('"x"')):
        server.will(Answer.stream([broken.replace(b"data", b"event: message_start\ndata")]))
        with refused(DataLossError, "PROVIDER_REPLY_MALFORMED"):
            await stream(stub, "Hello")


async def test_redirects_are_not_followed_with_the_key(wire: Wire, make: Make, server: Server) -> None:
    server.will(Answer(b"", status=302, headers={"location": f"{server.address}/elsewhere"}))
    for error in await both(await make(wire)):
        assert error.reason == "PROVIDER_REPLY_MALFORMED"
    assert all("elsewhere" not in each.path for each in server.asked)


async def test_nobody_at_the_address(wire: Wire, make: Make, server: Server) -> None:
    stub = await make(wire, base_url="http://127.0.0.1:9", retries={"tries": 2})
    for error in await both(stub):
        assert (type(error), error.reason) == (UnavailableError, "PROVIDER_UNAVAILABLE")
        assert "http://127.0.0.1:9" in error.message and "http_status" not in error.metadata


async def test_silence_is_a_time_out(wire: Wire, make: Make, server: Server) -> None:
    server.will(Answer(is_silent=True))
    stub = await make(wire, timeout_seconds=0.05)
    for error in await both(stub):
        assert (type(error), error.reason) == (DeadlineExceededError, "PROVIDER_TIMEOUT")
    server.will(Answer.stream(wire.streamed(["Good ", "day."])[:4], is_silent=True))
    with refused(DeadlineExceededError, "PROVIDER_TIMEOUT"):
        await stream(stub, "Hello")
    assert len(server.asked) == 3, "what may have been billed is not asked again"


async def test_a_cancelled_call_ends_the_request(wire: Wire, make: Make, bound: Binding, server: Server) -> None:
    stub = await make(wire, binding=bound)
    server.will(Answer(is_silent=True))
    for call in (chat(stub, "Hello"), stream(stub, "Hello")):
        task = asyncio.ensure_future(call)
        await server.arrived.wait()
        task.cancel()
        await server.gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.arrived.clear()
        server.gone.clear()


async def test_a_stream_that_is_left_ends_the_request(wire: Wire, make: Make, bound: Binding, server: Server) -> None:
    stub = await make(wire, binding=bound)
    server.will(Answer.stream(wire.streamed(["Good ", "day."])[:-1], is_silent=True))
    events = stub.StreamChat(pb.StreamChatRequest(messages=[user("Hello")]))
    assert (await anext(events)).content_delta == "Good "
    await events.aclose()
    await server.gone.wait()


async def test_the_caller_s_deadline_ends_the_request(wire: Wire, make: Make, server: Server) -> None:
    stub = await make(wire)
    server.will(wire.reply("Good day."), Answer(is_silent=True))
    # The first call loads the library, which may take longer than the deadline.
    await chat(stub, "Hello")
    with pytest.raises(DeadlineExceededError):
        await stub.Chat(pb.ChatRequest(messages=[user("Hello")]), timeout=0.2)
    assert len(server.asked) == 2
    await server.gone.wait()


async def test_without_a_key_nothing_is_asked(make: Make, server: Server) -> None:
    for wire in (AnthropicWire(), GoogleWire()):
        for error in await both(await make(wire, key="")):
            assert (type(error), error.reason) == (UnauthenticatedError, "PROVIDER_CREDENTIALS")
            assert "secrets" in error.message
    stub = await make(OpenAIWire(), key="", base_url="https://api.openai.com/v1")
    assert {error.reason for error in await both(stub)} == {"PROVIDER_CREDENTIALS"}
    assert not server.asked


async def test_a_key_that_no_header_can_hold_is_not_shown(wire: Wire, make: Make) -> None:
    with pytest.raises(KitchenError) as caught:
        await make(wire, key="sk-bad\nkey-4711")
    assert caught.value.reason == "MANIFEST_INVALID" and "4711" not in repr(caught.value.__dict__)


async def test_no_log_line_shows_the_key(
    wire: Wire, make: Make, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server.will(wire.error(401, f"Incorrect key {KEY}"), wire.error(500, f"Who is {KEY}?"))
    await both(await make(wire))
    assert KEY not in caplog.text


LIMITS = [
    (AnthropicWire(), {"message": "prompt is too long: 9001 tokens > 8192 maximum"}),
    (
        OpenAIWire(),
        {
            "message": "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001.",
            "code": "context_length_exceeded",
        },
    ),
    (OpenAIWire(), {"message": "This model's maximum context length is 8192 tokens. You asked for 9001.", "code": 400}),
    (GoogleWire(), {"message": "The input token count (9001) exceeds the maximum number of tokens allowed (8192)."}),
]


@pytest.mark.parametrize(("wire", "answer"), LIMITS)
async def test_a_conversation_that_is_too_long_tells_the_limit(
    wire: Wire, answer: dict[str, Any], make: Make, server: Server
) -> None:
    server.will(wire.error(400, **answer))
    for error in await both(await make(wire)):
        assert (type(error), error.reason) == (InvalidArgumentError, "CONTEXT_LENGTH_EXCEEDED")
        assert error.metadata["limit"] == "8192" and [each.field for each in error.fields] == ["messages"]


GOOGLE = "type.googleapis.com/google.rpc."
SPENT = [
    (AnthropicWire(), 400, {"message": "Your credit balance is too low to access the Anthropic API."}),
    (AnthropicWire(), 402, {"message": "No payment.", "kind": "billing_error"}),
    (
        OpenAIWire(),
        429,
        {"message": "You exceeded your quota.", "kind": "insufficient_quota", "code": "insufficient_quota"},
    ),
    (
        GoogleWire(),
        429,
        {
            "message": "Quota exceeded.",
            "kind": "RESOURCE_EXHAUSTED",
            "details": [
                {"@type": f"{GOOGLE}QuotaFailure", "violations": [{"quotaId": "GenerateRequestsPerDayPerProject"}]},
                {"@type": f"{GOOGLE}RetryInfo", "retryDelay": "34.5s"},
            ],
        },
    ),
]


@pytest.mark.parametrize(("wire", "status", "answer"), SPENT)
async def test_a_quota_that_is_used_up_is_no_reason_to_try_again(
    wire: Wire, status: int, answer: dict[str, Any], make: Make, server: Server
) -> None:
    server.will(wire.error(status, **answer))
    for error in await both(await make(wire)):
        assert (error.reason, error.retry_delay) == ("QUOTA_EXHAUSTED", None)
    assert len(server.asked) == 2


async def test_google_s_own_ways_to_say_it(make: Make, server: Server, waits: Waits) -> None:
    wire = GoogleWire()
    stub = await make(wire)
    server.will(
        wire.error(429, "Slow.", details=[{"@type": f"{GOOGLE}RetryInfo", "retryDelay": "3.5s"}]), wire.reply("Yes.")
    )
    assert (await chat(stub, "Hello")).content == "Yes." and waits.told == [3.5]
    server.will(
        wire.error(400, "API key not valid.", details=[{"@type": f"{GOOGLE}ErrorInfo", "reason": "API_KEY_INVALID"}])
    )
    with refused(UnauthenticatedError, "PROVIDER_CREDENTIALS"):
        await chat(stub, "Hello")


async def test_an_unknown_model_is_named(make: Make, server: Server) -> None:
    wire = OpenAIWire()
    server.will(wire.error(400, "The model does not exist.", code="model_not_found"))
    with refused(NotFoundError, "MODEL_NOT_FOUND", says=f"'{MODEL}'"):
        await chat(await make(wire), "Hello")
