"""What a channel tries again by itself, and what it leaves to its caller."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from crucible.port.llm.v1 import llm_pb2
from crucible.port.python_bridge.v1 import python_bridge_pb2
from crucible.type.v1 import message_pb2
from crucible_kit._remote_channel import NOT_REPEATED
from crucible_kit.channel import connect
from crucible_kit.errors import UnavailableError
from crucible_kit.ports import PORTS
from crucible_kit.serving import serve_ports

HELLO = [message_pb2.Message(role="user", content="hello")]
CALLS: list[tuple[str, str, Any, int]] = [
    ("llm", "ListModels", llm_pb2.ListModelsRequest(), 4),
    ("llm", "Chat", llm_pb2.ChatRequest(messages=HELLO), 1),
    (
        "python_bridge",
        "CallFunction",
        python_bridge_pb2.CallFunctionRequest(session_id="s", library="math", function="sqrt"),
        1,
    ),
    ("python_bridge", "ReleaseRef", python_bridge_pb2.ReleaseRefRequest(session_id="s", ref={"ref_id": "r"}), 4),
]


class Away:
    """Answers every call that there is nobody there."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        if not name[0].isupper():
            raise AttributeError(name)

        async def refuse(request: Any, context: Any) -> Any:
            self.calls[name] += 1
            raise UnavailableError("nobody is there", reason="PROVIDER_UNAVAILABLE")

        return refuse


def test_they_are_methods_of_the_contract() -> None:
    services = {port.service.full_name: port.service.methods_by_name for port in PORTS.values()}
    assert all(set(names) <= set(services[service]) for service, names in NOT_REPEATED.items())


async def test_calls_with_effects_or_a_price_are_made_once() -> None:
    away = Away()
    served = await serve_ports(
        {"llm": away, "python_bridge": away}, "127.0.0.1:0", name="away", capabilities={"llm": (), "python_bridge": ()}
    )
    channel = connect(served.address)
    for port, method, request, _ in CALLS:
        with pytest.raises(UnavailableError):
            await getattr(PORTS[port].stub(channel), method)(request)
    await channel.close()
    await served.stop(0)
    assert away.calls == {method: count for _, method, _, count in CALLS}
