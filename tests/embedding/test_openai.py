"""Embeddings over the package openai: its wire format, batches, usage, and what goes wrong."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible.port.embedding.v1 import embedding_pb2 as pb
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import (
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from crucible_kit.tensors import from_tensor
from tests.contract.conftest import Binding
from tests.contract.listing import assert_pages
from tests.contract.refusals import refused
from tests.llm.conftest import Waits
from tests.llm.server import Answer, Server

pytest.importorskip("openai")

from crucible_adapters.embedding.openai import OpenAIEmbedding, OpenAIEmbeddingOptions

KEY = "sk-planted-0123456789abcdef"
Make = Callable[..., Awaitable[Any]]


def answer(*vectors: Any, tokens: int | None = 3, **more: Any) -> Answer:
    """As POST /v1/embeddings answers; vectors come as base64, as the adapter asks for them."""
    data = [
        {"object": "embedding", "index": number, "embedding": encoded(vector)} for number, vector in enumerate(vectors)
    ]
    body: dict[str, Any] = {"object": "list", "data": data, "model": "text-embedding-3-small", **more}
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Answer(body)


def encoded(vector: Any) -> Any:
    return vector if isinstance(vector, str) else base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def failure(status: int, message: str, *, code: str | None = None, kind: str = "error", **headers: str) -> Answer:
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return Answer(body, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture
def make(server: Server, binding: Binding, waits: Waits, tmp_path: Path) -> Make:
    async def made(*, key: str = KEY, **options: Any) -> Any:
        given = {"base_url": f"{server.address}/v1", **options}
        context = AdapterContext(data_dir=tmp_path, secrets={"api_key": key} if key else {})
        return await binding.stub(OpenAIEmbedding(OpenAIEmbeddingOptions(**given), context, clock=waits.clock()))

    return made


async def embed(stub: Any, *texts: str, **fields: Any) -> pb.EmbedTextsResponse:
    return await stub.EmbedTexts(pb.EmbedTextsRequest(texts=texts, **fields))


over_bindings = pytest.mark.parametrize("binding", ("object", "serialise", "unix"), indirect=True)


@over_bindings
async def test_a_request_and_its_answer(make: Make, server: Server) -> None:
    server.will(answer([3, 4], [0, 0], tokens=5))
    price = {"dimension": 2, "price": 0.02}
    stub = await make(models={"text-embedding-3-small": price})
    response = await embed(stub, "a", "b", dimension=2)
    assert from_tensor(response.vectors).tolist() == [[3, 4], [0, 0]]
    assert (response.model, response.dimension) == ("text-embedding-3-small", 2)
    assert response.usage.input_tokens == 5
    assert response.cost.currency == "USD" and response.cost.amount == pytest.approx(5 * 0.02 / 1e6)
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v1/embeddings")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    model = "text-embedding-3-small"
    assert asked.body == {"model": model, "input": ["a", "b"], "dimensions": 2, "encoding_format": "base64"}
    normal = await embed(stub, "a", "b", normalize=True)
    assert np.allclose(from_tensor(normal.vectors), [[0.6, 0.8], [0, 0]])


async def test_rows_follow_the_indices_and_numbers_may_be_plain(make: Make, server: Server) -> None:
    data = [{"object": "embedding", "index": 1, "embedding": [2.5]}, {"index": 0, "embedding": [1.5]}]
    server.will(Answer({"object": "list", "data": data, "model": "other"}))
    response = await embed(await make(encoding="float"), "a", "b", model="other")
    assert from_tensor(response.vectors).tolist() == [[1.5], [2.5]]
    assert response.model == "other" and not response.HasField("usage") and not response.HasField("cost")
    assert server.asked[0].body["encoding_format"] == "float" and "dimensions" not in server.asked[0].body


async def test_batches_beyond_the_provider_s_limit(make: Make, server: Server) -> None:
    server.will(answer([1], [2], tokens=2), answer([3], tokens=4), answer([4], [5], tokens=8))
    stub = await make(batch_texts=2, batch_bytes=4)
    response = await embed(stub, "a", "b", "four", "c", "ü")
    assert [each.body["input"] for each in server.asked] == [["a", "b"], ["four"], ["c", "ü"]]
    assert from_tensor(response.vectors).tolist() == [[1], [2], [3], [4], [5]]
    assert response.usage.input_tokens == 14
    server.will(answer([1], [2]), answer([3, 3]))
    with refused(DataLossError, "PROVIDER_REPLY_MALFORMED", says="different lengths"):
        await embed(stub, "a", "b", "four")
    # One batch that does not tell: the sum would be wrong.
    server.will(answer([1], [2]), answer([3], tokens=None))
    assert not (await embed(stub, "a", "b", "four")).HasField("usage")


async def test_without_a_key_none_is_claimed(make: Make, server: Server) -> None:
    server.will(answer([1]))
    await embed(await make(key=""), "a")
    assert "authorization" not in server.asked[0].headers
    with refused(UnauthenticatedError, "PROVIDER_CREDENTIALS", says="api_key"):
        await embed(await make(key="", base_url=""), "a")


REFUSALS = {
    "401": (failure(401, f"Incorrect API key provided: {KEY}"), UnauthenticatedError, "PROVIDER_CREDENTIALS"),
    "403": (failure(403, "no access"), PermissionDeniedError, "PROVIDER_FORBIDDEN"),
    "404": (failure(404, "no model", code="model_not_found"), NotFoundError, "MODEL_NOT_FOUND"),
    "400": (failure(400, f"strange {KEY}"), InvalidArgumentError, "PROVIDER_REFUSED_REQUEST"),
    "422": (failure(422, "strange"), InvalidArgumentError, "PROVIDER_REFUSED_REQUEST"),
    "quota": (failure(429, "spent", code="insufficient_quota"), ResourceExhaustedError, "QUOTA_EXHAUSTED"),
    "json": (Answer(b"<html>", content_type="application/json"), DataLossError, "PROVIDER_REPLY_MALFORMED"),
    "html": (Answer(b"<html>", content_type="text/html"), DataLossError, "PROVIDER_REPLY_MALFORMED"),
    "no data": (Answer({"object": "list"}), DataLossError, "PROVIDER_REPLY_MALFORMED"),
    "too few": (answer(), DataLossError, "PROVIDER_REPLY_MALFORMED"),
    "too many": (answer([1], [2]), DataLossError, "PROVIDER_REPLY_MALFORMED"),
    "no base64": (answer("!!!"), DataLossError, "PROVIDER_REPLY_MALFORMED"),
    "NaN": (answer([float("nan")]), DataLossError, "PROVIDER_REPLY_MALFORMED"),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_what_is_not_tried_again(make: Make, server: Server, waits: Waits, name: str) -> None:
    said, kind, reason = REFUSALS[name]
    server.will(said)
    with pytest.raises(KitchenError) as caught:
        await embed(await make(), "a")
    assert (type(caught.value), caught.value.reason) == (kind, reason)
    assert KEY not in caught.value.message and len(server.asked) == 1 and waits.told == []


async def test_a_dimension_that_was_not_asked_for(make: Make, server: Server) -> None:
    server.will(answer([1, 2, 3]))
    with refused(DataLossError, "PROVIDER_REPLY_MALFORMED", says="where 2 were asked for"):
        await embed(await make(), "a", dimension=2)


@over_bindings
async def test_too_many_requests_wait_as_told(make: Make, server: Server, waits: Waits) -> None:
    server.will(failure(429, "slow down", retry_after="7"), answer([1]))
    stub = await make()
    await embed(stub, "a")
    assert waits.told == [7] and len(server.asked) == 2
    server.will(failure(429, "slow down", retry_after="90"))
    with pytest.raises(ResourceExhaustedError) as caught:
        await embed(stub, "a")
    assert (caught.value.reason, caught.value.retry_delay, waits.told) == ("RATE_LIMITED", 90, [7])


async def test_trouble_is_tried_again_by_the_policy(make: Make, server: Server, waits: Waits) -> None:
    stub = await make(retries={"tries": 3, "initial_backoff_seconds": 1, "jitter": 0})
    server.will(failure(500, "oops"), Answer(b'{"data"', is_cut=True), answer([1]))
    await embed(stub, "a")
    assert waits.told == [1, 2]
    server.will(failure(503, "oops"))
    with refused(UnavailableError, "PROVIDER_UNAVAILABLE", says="answers 503"):
        await embed(stub, "a")
    assert len(server.asked) == 6


async def test_a_silent_server_is_left_alone(make: Make, server: Server) -> None:
    server.will(Answer(is_silent=True))
    with refused(DeadlineExceededError, "PROVIDER_TIMEOUT", says="timeout_seconds"):
        await embed(await make(timeout_seconds=0.05), "a")


@over_bindings
async def test_a_cancelled_call_ends_its_request(make: Make, server: Server) -> None:
    server.will(Answer(is_silent=True))
    task = asyncio.ensure_future(embed(await make(), "a"))
    await server.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.gone.wait()


async def test_no_server_at_all(make: Make, waits: Waits) -> None:
    stub = await make(base_url="http://127.0.0.1:9/v1", retries={"tries": 2})
    with refused(UnavailableError, "PROVIDER_UNAVAILABLE", says="base_url"):
        await embed(stub, "a")
    assert len(waits.told) == 1


async def test_a_text_that_is_too_long_is_named(make: Make, server: Server) -> None:
    stub = await make(batch_texts=4)
    server.will(answer([1], [1], [1], [1]), failure(400, "Invalid 'input[1]': maximum input length is 8192 tokens."))
    with pytest.raises(InvalidArgumentError) as caught:
        await embed(stub, *"abcdef")
    error = caught.value
    assert (error.reason, error.metadata["index"], error.metadata["limit"]) == ("TEXT_TOO_LONG", "5", "8192")
    # A provider that does not tell which one is asked about halves: "c" here.
    long = failure(400, "This model's maximum context length is 512 tokens, however you requested 900 tokens")
    server.will(long, answer([1], [1]), long)
    with pytest.raises(InvalidArgumentError) as caught:
        await embed(stub, *"abcd")
    error = caught.value
    assert (error.reason, error.metadata["index"], error.metadata["limit"]) == ("TEXT_TOO_LONG", "2", "512")
    assert [each.body["input"] for each in server.asked[2:]] == [list("abcd"), list("ab"), ["c"]]


async def test_what_is_refused_before_the_provider_is_asked(make: Make, server: Server) -> None:
    stub = await make()
    with refused(InvalidArgumentError, "FIELD_INVALID", field="texts[1]"):
        await embed(stub, "a", "")
    with refused(UnimplementedError, "CAPABILITY_MISSING", says="embedding.text_use"):
        await embed(stub, "a", use=pb.TEXT_USE_QUERY)
    with refused(ResourceExhaustedError, "RESULT_TOO_LARGE", says="fewer texts"):
        await embed(stub, *["a"] * 200, dimension=65536)
    assert not server.asked


async def test_models_are_listed(make: Make) -> None:
    models = (await (stub := await make()).ListModels(pb.ListModelsRequest())).models
    assert [(each.name, each.dimension) for each in models] == [
        ("text-embedding-3-large", 3072),
        ("text-embedding-3-small", 1536),
        ("text-embedding-ada-002", 1536),
    ]
    await assert_pages(stub.ListModels, pb.ListModelsRequest(), "models")


def test_options_and_keys_are_checked(tmp_path: Path) -> None:
    for options in ({"base_url": "example.org"}, {"base_url": "https://a:b@c"}, {"batch_texts": 0}, {"other": 1}):
        with pytest.raises(ValueError):
            OpenAIEmbeddingOptions.model_validate(options)
    context = AdapterContext(data_dir=tmp_path, secrets={"api_key": "a\nb"})
    with pytest.raises(FailedPreconditionError) as caught:
        OpenAIEmbedding(OpenAIEmbeddingOptions(), context)
    assert caught.value.reason == "PROVIDER_CREDENTIALS" and "a\nb" not in caught.value.message
