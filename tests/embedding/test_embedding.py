"""Embeddings over the providers' libraries: batches, usage, and what goes wrong."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
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
)
from crucible_kit.tensors import from_tensor
from tests.contract.listing import assert_pages
from tests.contract.refusals import refused
from tests.embedding.conftest import KEY, Make, embed
from tests.embedding.wires import GoogleWire, OpenAIWire, Wire
from tests.llm.server import Answer, Server
from tests.providers import Waits

over_bindings = pytest.mark.parametrize("binding", ("object", "serialise", "unix"), indirect=True)


@over_bindings
async def test_a_request_and_its_answer(wire: Wire, make: Make, server: Server) -> None:
    server.will(wire.answer([3, 4], [0, 0], tokens=5))
    stub = await make(wire, models={wire.model: {"dimension": 2, "price": 0.02}})
    response = await embed(stub, "a", "b", dimension=2)
    assert from_tensor(response.vectors).tolist() == [[3, 4], [0, 0]]
    assert (response.model, response.dimension) == (wire.model, 2)
    assert response.usage.input_tokens == 5
    assert response.cost.currency == "USD" and response.cost.amount == pytest.approx(5 * 0.02 / 1e6)
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", wire.path)
    name, value = wire.key_header
    assert asked.headers[name] == value.format(KEY)
    assert (wire.texts(asked), wire.dimensions(asked)) == (["a", "b"], [2, 2])
    normal = await embed(stub, "a", "b", normalize=True)
    assert np.allclose(from_tensor(normal.vectors), [[0.6, 0.8], [0, 0]])
    assert wire.dimensions(server.asked[1]) == [None, None]


async def test_batches_beyond_the_provider_s_limit(wire: Wire, make: Make, server: Server) -> None:
    server.will(wire.answer([1], [2], tokens=2), wire.answer([3], tokens=4), wire.answer([4], [5], tokens=8))
    stub = await make(wire, batch_texts=2, batch_bytes=4)
    response = await embed(stub, "a", "b", "four", "c", "ü")
    assert [wire.texts(each) for each in server.asked] == [["a", "b"], ["four"], ["c", "ü"]]
    assert from_tensor(response.vectors).tolist() == [[1], [2], [3], [4], [5]]
    assert response.usage.input_tokens == 14
    server.will(wire.answer([1], [2]), wire.answer([3, 3]))
    with refused(DataLossError, "PROVIDER_REPLY_MALFORMED", says="different lengths"):
        await embed(stub, "a", "b", "four")
    # One batch that does not tell: the sum would be wrong.
    server.will(wire.answer([1], [2]), wire.answer([3], tokens=None))
    assert not (await embed(stub, "a", "b", "four")).HasField("usage")


KINDS = {
    400: (InvalidArgumentError, "PROVIDER_REFUSED_REQUEST"),
    401: (UnauthenticatedError, "PROVIDER_CREDENTIALS"),
    403: (PermissionDeniedError, "PROVIDER_FORBIDDEN"),
    404: (NotFoundError, "MODEL_NOT_FOUND"),
    422: (InvalidArgumentError, "PROVIDER_REFUSED_REQUEST"),
    429: (ResourceExhaustedError, "RATE_LIMITED"),
    500: (UnavailableError, "PROVIDER_UNAVAILABLE"),
    503: (UnavailableError, "PROVIDER_UNAVAILABLE"),
}


async def test_every_status_has_its_error(
    wire: Wire, make: Make, server: Server, waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stub = await make(wire, retries={"tries": 3, "initial_backoff_seconds": 1, "jitter": 0})
    for status, (kind, reason) in KINDS.items():
        before, waits.told = len(server.asked), []
        server.will(wire.error(status, f"It is {status}, not {KEY}."))
        with pytest.raises(KitchenError) as caught:
            await embed(stub, "a")
        error = caught.value
        assert (type(error), error.reason) == (kind, reason), error.message
        assert error.metadata["provider"] == wire.name and error.metadata["http_status"] == str(status)
        assert (f"It is {status}" in error.message) == (status != 401)
        assert KEY not in repr((error.message, error.metadata, error.fields))
        tries = 3 if status in (429, 500, 503) else 1
        assert (len(server.asked) - before, waits.told) == (tries, [1, 2] if tries == 3 else [])
    assert KEY not in caplog.text


async def test_bodies_that_are_no_answer_are_malformed(wire: Wire, make: Make, server: Server) -> None:
    stub = await make(wire)
    answers = [Answer(each) for each in (b"{", b"[]", b"{}", b'{"data": 3, "embeddings": 3}', b"\xff\xfe")]
    answers.append(Answer(b"<html>Welcome</html>", content_type="text/html"))
    answers += [wire.answer(*vectors) for vectors in ((), ([1], [2]), ([float("nan")],), ([],))]
    for answer in answers:
        server.asked.clear()
        server.will(answer)
        with refused(DataLossError, "PROVIDER_REPLY_MALFORMED"):
            await embed(stub, "a")
        assert len(server.asked) == 1, "nothing is asked again"
    server.will(wire.answer([1, 2, 3]))
    with refused(DataLossError, "PROVIDER_REPLY_MALFORMED", says="where 2 were asked for"):
        await embed(stub, "a", dimension=2)
    server.will(Answer(b"", status=302, headers={"location": f"{server.address}/elsewhere"}))
    with refused(DataLossError, "PROVIDER_REPLY_MALFORMED"):
        await embed(stub, "a")
    assert all("elsewhere" not in each.path for each in server.asked)


async def test_trouble_is_tried_again_as_told_and_by_the_policy(
    wire: Wire, make: Make, server: Server, waits: Waits
) -> None:
    stub = await make(wire, retries={"tries": 4, "initial_backoff_seconds": 1, "jitter": 0})
    slow = wire.error(429, "slow down", headers={"retry-after": "7"})
    server.will(slow, wire.error(500, "oops"), Answer(b'{"data"', is_cut=True), wire.answer([1]))
    await embed(stub, "a")
    assert waits.told == [7, 2, 4] and len(server.asked) == 4
    server.will(wire.error(429, "slow down", headers={"retry-after": "90"}))
    with pytest.raises(ResourceExhaustedError) as caught:
        await embed(stub, "a")
    assert (caught.value.reason, caught.value.retry_delay, len(waits.told)) == ("RATE_LIMITED", 90, 3)


async def test_a_silent_server_is_left_alone(wire: Wire, make: Make, server: Server) -> None:
    server.will(Answer(is_silent=True))
    with refused(DeadlineExceededError, "PROVIDER_TIMEOUT", says="timeout_seconds"):
        await embed(await make(wire, timeout_seconds=0.05), "a")


@over_bindings
async def test_a_cancelled_call_ends_its_request(wire: Wire, make: Make, server: Server) -> None:
    server.will(Answer(is_silent=True))
    task = asyncio.ensure_future(embed(await make(wire), "a"))
    await server.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.gone.wait()


async def test_no_server_at_all(wire: Wire, make: Make, waits: Waits) -> None:
    stub = await make(wire, base_url="http://127.0.0.1:9", retries={"tries": 2})
    with refused(UnavailableError, "PROVIDER_UNAVAILABLE", says="base_url"):
        await embed(stub, "a")
    assert len(waits.told) == 1


async def test_a_text_that_is_too_long_is_found_among_halves(wire: Wire, make: Make, server: Server) -> None:
    # A provider that does not tell which one it is: "g" here.
    long = {
        "openai": "This model's maximum context length is 512 tokens, however you requested 900 tokens",
        "google_genai": "The input token count (900) exceeds the maximum number of tokens allowed (512).",
    }[wire.name]
    refusal = wire.error(400, long)
    server.will(wire.answer([1], [1], [1], [1]), refusal, wire.answer([1], [1]), refusal)
    with pytest.raises(InvalidArgumentError) as caught:
        await embed(await make(wire, batch_texts=4), *"abcdefgh")
    error = caught.value
    assert (error.reason, error.metadata["index"], error.metadata["limit"]) == ("TEXT_TOO_LONG", "6", "512")
    assert [wire.texts(each) for each in server.asked[1:]] == [list("efgh"), list("ef"), ["g"]]


async def test_what_is_refused_before_the_provider_is_asked(wire: Wire, make: Make, server: Server) -> None:
    stub = await make(wire)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="texts[1]"):
        await embed(stub, "a", "")
    with refused(ResourceExhaustedError, "RESULT_TOO_LARGE", says="fewer texts"):
        await embed(stub, *["a"] * 200, dimension=65536)
    with refused(UnauthenticatedError, "PROVIDER_CREDENTIALS", says="api_key"):
        await embed(await make(wire, key="", base_url=""), "a")
    assert not server.asked


async def test_models_are_listed(wire: Wire, make: Make) -> None:
    stub = await make(wire, models={"b": {"dimension": 2, "price": 0.5}, "a": {"dimension": 3, "max_input_tokens": 7}})
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [(each.name, each.dimension, each.max_input_tokens) for each in models] == [("a", 3, 7), ("b", 2, 0)]
    assert models[1].price_per_million_tokens.amount == 0.5 and not models[0].HasField("price_per_million_tokens")
    listed = (await (stub := await make(wire)).ListModels(pb.ListModelsRequest())).models
    assert wire.model in {each.name for each in listed}
    await assert_pages(stub.ListModels, pb.ListModelsRequest(), "models")


def test_options_keys_and_packages_are_checked(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = wire.adapter
    options = kind.description.options
    for bad in ({"base_url": "example.org"}, {"batch_texts": 0}, {"timeout_seconds": 0}, {"other": 1}):
        with pytest.raises(ValueError):
            options.model_validate(bad)
    for address, key in (("https://user:4711@host", KEY), ("", "sk-bad\nkey-4711")):
        with pytest.raises(KitchenError) as caught:
            kind(options(base_url=address), AdapterContext(data_dir=tmp_path, secrets={"api_key": key}))
        assert caught.value.reason == "MANIFEST_INVALID" and "4711" not in repr(caught.value.__dict__)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "crucible_adapters.llm.library.find_spec", lambda name: None if name == kind.package else found(name)
    )
    with refused(FailedPreconditionError, "PACKAGE_MISSING", says="pip install 'crucible-kitchen[embeddings]'"):
        kind(options(), AdapterContext(data_dir=tmp_path))


# What only one of them has.


async def test_openai_s_rows_follow_the_indices_and_numbers_may_be_plain(make: Make, server: Server) -> None:
    data = [{"object": "embedding", "index": 1, "embedding": [2.5]}, {"index": 0, "embedding": [1.5]}]
    server.will(Answer({"object": "list", "data": data, "model": "other"}))
    response = await embed(await make(OpenAIWire(), encoding="float"), "a", "b", model="other")
    assert from_tensor(response.vectors).tolist() == [[1.5], [2.5]]
    assert response.model == "other" and not response.HasField("usage") and not response.HasField("cost")
    assert server.asked[0].body == {"model": "other", "input": ["a", "b"], "encoding_format": "float"}
    server.will(OpenAIWire().answer("!!!"))
    with refused(DataLossError, "PROVIDER_REPLY_MALFORMED"):
        await embed(await make(OpenAIWire()), "a")


async def test_servers_like_openai_s_need_no_key(make: Make, server: Server) -> None:
    server.will(OpenAIWire().answer([1]))
    await embed(await make(OpenAIWire(), key=""), "a")
    assert "authorization" not in server.asked[0].headers


async def test_openai_names_the_text_and_tells_when_credit_is_spent(make: Make, server: Server) -> None:
    wire = OpenAIWire()
    stub = await make(wire, batch_texts=4)
    server.will(wire.answer([1], [1], [1], [1]), wire.too_long(1, 8192))
    with pytest.raises(InvalidArgumentError) as caught:
        await embed(stub, *"abcdef")
    error = caught.value
    assert (error.reason, error.metadata["index"], error.metadata["limit"]) == ("TEXT_TOO_LONG", "5", "8192")
    server.will(wire.error(429, "spent", code="insufficient_quota"))
    with refused(ResourceExhaustedError, "QUOTA_EXHAUSTED"):
        await embed(stub, "a")


async def test_google_is_told_what_a_text_is_for(make: Make, server: Server) -> None:
    wire = GoogleWire()
    server.will(wire.answer([1]))
    stub = await make(wire)
    await embed(stub, "a", use=pb.TEXT_USE_QUERY)
    await embed(stub, "a", use=pb.TEXT_USE_DOCUMENT)
    await embed(stub, "a")
    asked = [each.body["requests"][0] for each in server.asked]
    assert [each.get("taskType") for each in asked] == ["RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT", None]
    # Of models that take no such field, in words.
    server.asked.clear()
    await embed(stub, "a", use=pb.TEXT_USE_QUERY, model="gemini-embedding-2")
    await embed(stub, "a", use=pb.TEXT_USE_DOCUMENT, model="gemini-embedding-2")
    server.will(wire.answer([1], [2]))
    await embed(stub, "a", "b", model="gemini-embedding-2")
    assert [wire.texts(each) for each in server.asked] == [
        ["task: search result | query: a"],
        ["title: none | text: a"],
        ["a", "b"],
    ]
    assert len(server.asked[2].body["requests"]) == 2
    assert "taskType" not in repr([each.body for each in server.asked])
    assert {each.path for each in server.asked} == {"/v1/models/gemini-embedding-2:batchEmbedContents"}


async def test_texts_of_google_s_that_may_be_too_long_are_counted(make: Make, server: Server) -> None:
    wire = GoogleWire()
    stub = await make(wire, models={wire.model: {"dimension": 1, "max_input_tokens": 4}})
    server.will(wire.count(4), wire.answer([1], [2], [3]))
    await embed(stub, "four", "12345", "b")
    assert [each.path.rpartition(":")[2] for each in server.asked] == ["countTokens", "batchEmbedContents"]
    assert server.asked[0].body["contents"][0]["parts"] == [{"text": "12345"}]
    server.will(wire.count(5))
    with pytest.raises(InvalidArgumentError) as caught:
        await embed(stub, "four", "12345")
    error = caught.value
    assert (error.reason, error.message) == ("TEXT_TOO_LONG", "texts[1]: has 5 tokens, at most 4 are taken: split it")
    assert (error.metadata["index"], error.metadata["limit"], error.metadata["tokens"]) == ("1", "4", "5")
    # Nothing is known of another model.
    server.asked.clear()
    server.will(wire.answer([1]))
    await embed(stub, "12345", model="other")
    assert len(server.asked) == 1


async def test_google_s_models_are_parts_of_addresses(make: Make, server: Server) -> None:
    stub = await make(GoogleWire())
    for name in ("../x", "a?b", "-a"):
        with refused(InvalidArgumentError, "FIELD_INVALID", field="model"):
            await embed(stub, "a", model=name)
    assert not server.asked
