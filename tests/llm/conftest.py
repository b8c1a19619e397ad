"""The real libraries of the providers against a server of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from crucible.port.llm.v1 import llm_pb2 as pb
from crucible.type.v1 import message_pb2
from crucible_kit.adapter import AdapterContext
from tests import providers
from tests.contract.conftest import Binding
from tests.llm.server import Server
from tests.llm.wires import MODEL, WIRES, Wire
from tests.providers import Waits

KEY = "sk-planted-0123456789abcdef"
Make = Callable[..., Awaitable[Any]]


no_settings_from_outside = providers.no_settings_from_outside
waits = providers.waits
server = providers.server


@pytest.fixture(params=WIRES, ids=lambda wire: wire.name)
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param


@pytest.fixture
async def serialised() -> AsyncIterator[Binding]:
    binding = Binding("serialise")
    yield binding
    await binding.stop()


@pytest.fixture(params=["object", "serialise", "tcp"])
async def bound(request: pytest.FixtureRequest) -> AsyncIterator[Binding]:
    """The bindings of the contract tests, for what they may change."""
    binding = Binding(request.param)
    yield binding
    await binding.stop()


@pytest.fixture
def make(server: Server, serialised: Binding, waits: Waits, tmp_path: Path) -> Make:
    """Makes an adapter of a wire that asks the test's server, and gives a stub of it."""

    stubs: dict[str, Any] = {}

    async def made(wire: Wire, *, binding: Binding = serialised, key: str = KEY, **options: Any) -> Any:
        # Making one takes longer than asking it: a test that asks twice has it once.
        name = repr((wire.name, key, options))
        if name not in stubs:
            stubs[name] = await opened(wire, binding, key, options)
        return stubs[name]

    async def opened(wire: Wire, binding: Binding, key: str, options: dict[str, Any]) -> Any:
        given = {"model": MODEL, "base_url": server.address + wire.base_path, **options}
        context = AdapterContext(data_dir=tmp_path, secrets={"api_key": key} if key else {})
        kind: Any = wire.adapter
        return await binding.stub(kind(kind.description.options(**given), context, clock=waits.clock()))

    return made


def user(text: str) -> message_pb2.Message:
    return message_pb2.Message(role="user", content=text)


async def chat(stub: Any, *messages: str | message_pb2.Message, **fields: Any) -> pb.ChatReply:
    given = [user(each) if isinstance(each, str) else each for each in messages]
    return (await stub.Chat(pb.ChatRequest(messages=given, **fields))).reply


async def stream(stub: Any, *messages: str | message_pb2.Message, **fields: Any) -> list[pb.StreamChatResponse]:
    given = [user(each) if isinstance(each, str) else each for each in messages]
    return [each async for each in stub.StreamChat(pb.StreamChatRequest(messages=given, **fields))]
