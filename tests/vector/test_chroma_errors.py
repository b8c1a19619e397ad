"""What a Chroma server answers in place of a result, over its own library."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_adapters.vector.chroma import ChromaOptions, ChromaVectorStore
from crucible_kit.adapter import AdapterContext
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
from tests.contract.refusals import refused
from tests.llm.server import Answer, Server
from tests.providers import Waits
from tests.vector.collections import count, query

pytest.importorskip("chromadb")

TOKEN = "planted-0123456789"
IDENTITY = Answer({"user_id": "", "tenant": "default_tenant", "databases": ["default_database"]})
COLLECTION = Answer(
    {
        "id": "6f0f7c0e-8f4f-4d5e-9a53-0f1f3c1d2e3f",
        "name": "things",
        "configuration_json": {"hnsw": {"space": "l2"}, "spann": None, "embedding_function": None},
        "metadata": None,
        "dimension": 2,
        "tenant": "default_tenant",
        "database": "default_database",
        "log_position": 0,
        "version": 0,
        "schema": None,
    }
)
Make = Callable[..., ChromaVectorStore]


def failure(status: int, name: str, message: str, **headers: str) -> Answer:
    return Answer({"error": name, "message": message}, status=status, headers=headers)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Server()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def make(server: Server, tmp_path: Path) -> AsyncIterator[tuple[Make, Waits]]:
    stores: list[ChromaVectorStore] = []
    waits = Waits()

    def made(**options: Any) -> ChromaVectorStore:
        given = {"host": "127.0.0.1", "port": int(server.address.rpartition(":")[2]), **options}
        context = AdapterContext(data_dir=tmp_path, secrets={"token": TOKEN})
        stores.append(ChromaVectorStore(ChromaOptions(**given), context, clock=waits.clock()))
        return stores[-1]

    yield made, waits
    for store in stores:
        await store.close()


async def test_the_token_and_the_answer(make: tuple[Make, Waits], server: Server) -> None:
    server.will(IDENTITY, COLLECTION, Answer(3))
    assert await count(make[0]()) == 3
    assert {each.headers["authorization"] for each in server.asked} == {f"Bearer {TOKEN}"}
    server.will(IDENTITY, COLLECTION, Answer(3))
    assert await count(make[0](token_header="X-Chroma-Token")) == 3
    assert server.asked[-1].headers["x-chroma-token"] == TOKEN


REFUSALS = {
    "401": (failure(401, "ChromaAuthError", f"bad {TOKEN}"), UnauthenticatedError, "PROVIDER_CREDENTIALS"),
    "403": (failure(403, "AuthorizationError", f"not {TOKEN}"), PermissionDeniedError, "PROVIDER_FORBIDDEN"),
    "404": (failure(404, "NotFoundError", "gone"), NotFoundError, "COLLECTION_NOT_FOUND"),
    "400": (failure(400, "InvalidArgumentError", f"bad {TOKEN}"), InvalidArgumentError, "PROVIDER_REFUSED_REQUEST"),
    "422": (Answer(b"not json", status=422), InvalidArgumentError, "PROVIDER_REFUSED_REQUEST"),
    "quota": (failure(422, "QuotaError", "spent"), ResourceExhaustedError, "QUOTA_EXHAUSTED"),
    "html": (Answer(b"<html>", content_type="text/html"), DataLossError, "PROVIDER_REPLY_MALFORMED"),
    "other": (Answer({"a": 1}), DataLossError, "PROVIDER_REPLY_MALFORMED"),
}


# The library's first request, which is about itself, uses no quota.
@pytest.mark.parametrize(
    ("name", "first"), [(name, first) for name in REFUSALS for first in (True, False) if name != "quota" or not first]
)
async def test_what_is_not_tried_again(make: tuple[Make, Waits], server: Server, name: str, first: bool) -> None:
    said, kind, reason = REFUSALS[name]
    server.will(*([] if first and name not in ("other", "404") else [IDENTITY]), said)
    with pytest.raises(KitchenError) as caught:
        await count(make[0]())
    assert (type(caught.value), caught.value.reason) == (kind, reason), caught.value.message
    assert TOKEN not in caught.value.message and make[1].told == []


async def test_trouble_is_tried_again(make: tuple[Make, Waits], server: Server) -> None:
    store = make[0](retries={"tries": 3, "initial_backoff_seconds": 1, "jitter": 0})
    slow = failure(429, "RateLimitError", "slow down", **{"retry-after": "7"})
    server.will(slow, Answer(b"oops", status=500), IDENTITY, COLLECTION, Answer(3))
    assert await count(store) == 3
    assert make[1].told == [7, 2]
    server.will(Answer(b'{"', is_cut=True), Answer(b"", status=503))
    with refused(UnavailableError, "PROVIDER_UNAVAILABLE", says="answers 503"):
        await count(store)
    assert make[1].told == [7, 2, 1, 2]


async def test_a_silent_server_is_left_alone(make: tuple[Make, Waits], server: Server) -> None:
    server.will(Answer(is_silent=True))
    with refused(DeadlineExceededError, "PROVIDER_TIMEOUT"):
        await count(make[0](timeout_seconds=0.05))
    server.will(IDENTITY, COLLECTION, Answer(is_silent=True))
    with refused(DeadlineExceededError, "PROVIDER_TIMEOUT"):
        await query(make[0](timeout_seconds=0.05), [[1, 2]])


async def test_no_server_at_all(make: tuple[Make, Waits]) -> None:
    with refused(UnavailableError, "PROVIDER_UNAVAILABLE", says="host and port"):
        await count(make[0](port=9, retries={"tries": 2}))
    assert len(make[1].told) == 1
