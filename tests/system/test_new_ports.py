"""Ports that have no adapter by default: refused with what to write until the manifest maps them, then served."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from crucible.port.llm.v1 import llm_pb2
from crucible.port.python_bridge.v1 import python_bridge_pb2
from crucible.type.v1 import constraints_pb2, message_pb2
from crucible_client import KitchenClient
from crucible_kit.constraints import check_message
from crucible_kit.errors import KitchenError
from crucible_kit.ports import PORTS
from tests.system.harness import Server, serving

UNMAPPED = (
    *("deployment", "embedding", "environment", "evaluator", "feedback", "llm", "python_bridge", "reward", "vector"),
)


def smallest(kind: type[Message]) -> Message:
    """A message with what its contract requires, and nothing else."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        option: Any = constraints_pb2.field
        rule = field.GetOptions().Extensions[option]
        if rule.required:
            _fill(message, field, rule)
        elif rule.HasField("min") and rule.min > 0 and not field.has_presence and not field.is_repeated:
            setattr(message, field.name, int(rule.min))
    check_message(message)
    return message


def _fill(message: Any, field: Any, rule: constraints_pb2.FieldConstraints) -> None:
    place = getattr(message, field.name)
    if field.message_type is not None:
        value = smallest(GetMessageClass(field.message_type))
        if field.is_repeated:
            place.add().CopyFrom(value)
        else:
            place.SetInParent()  # there, even with nothing in it
            place.CopyFrom(value)
        return
    value: Any = 1
    if field.type == FieldDescriptor.TYPE_STRING:
        value = str(uuid.uuid4()) if rule.format == constraints_pb2.FieldConstraints.FORMAT_UUID else "http://abc"
        value = "abc" if rule.pattern or rule.format == constraints_pb2.FieldConstraints.FORMAT_IDENTIFIER else value
    elif field.type == FieldDescriptor.TYPE_BYTES:
        value = b"\0"
    if field.is_repeated:
        place.append(value)
    else:
        setattr(message, field.name, value)


def methods() -> list[tuple[str, MethodDescriptor]]:
    return [(port, method) for port in UNMAPPED for method in PORTS[port].service.methods]


async def first(call: Any) -> Any:
    return await anext(call) if hasattr(call, "__aiter__") else await call


async def test_every_call_of_an_unmapped_port_says_what_to_write(server: Server, kitchen: KitchenClient) -> None:
    assert len(methods()) == 47
    for port, method in methods():
        request = smallest(GetMessageClass(method.input_type))
        with pytest.raises(KitchenError) as caught:
            await first(getattr(kitchen.port(port), method.name)(request))
        error = caught.value
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "PORT_NOT_MAPPED"), method.full_name
        assert error.metadata == {"port": port, "service": PORTS[port].service.full_name}
        assert f"ports: {{{port}: " in error.message and "--manifest" in error.message


async def test_adapters_are_listed_for_mapped_ports_alone(kitchen: KitchenClient) -> None:
    listed = [each.port for each in await kitchen.list_adapters()]
    assert sorted(listed) == sorted(set(PORTS) - set(UNMAPPED))
    with pytest.raises(KitchenError) as caught:
        await kitchen.probe_adapter("llm")
    assert caught.value.reason == "PORT_NOT_MAPPED"


@pytest.fixture
def faked(tmp_path: Path) -> Path:
    lines = ["profile: test", "ports:", *(f"  {port}: builtin:fake_{port}" for port in UNMAPPED)]
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


async def test_mapped_ports_are_served(tmp_path: Path, faked: Path) -> None:
    with serving(tmp_path / "data", "--manifest", str(faked)) as server:
        async with KitchenClient.connect(server.address) as kitchen:
            assert len(await kitchen.list_adapters()) == len(PORTS)
            for port, method in methods():
                request = smallest(GetMessageClass(method.input_type))
                try:
                    await first(getattr(kitchen.port(port), method.name)(request))
                except StopAsyncIteration:
                    pass  # a stream of nothing
                except KitchenError as error:
                    # Refused by the adapter for what it does not find, by nobody for itself.
                    assert error.code.name in ("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION"), method.full_name
                    assert error.reason != "PORT_NOT_MAPPED"
            chat = llm_pb2.StreamChatRequest(messages=[message_pb2.Message(role="user", content="hello")])
            events = [event async for event in kitchen.port("llm").StreamChat(chat)]
            assert "".join(each.content_delta for each in events) == events[-1].reply.content != ""
            bridge = kitchen.port("python_bridge")
            opened = python_bridge_pb2.OpenSessionRequest(request_id=str(uuid.uuid4()))
            session_id = (await bridge.OpenSession(opened)).session_id
            call = python_bridge_pb2.CallFunctionRequest(session_id=session_id, library="math", function="sqrt")
            call.args.add(real=2.25)
            assert (await bridge.CallFunction(call)).result.real == 1.5


def test_fakes_are_for_the_profile_test_alone(tmp_path: Path, faked: Path) -> None:
    faked.write_text(faked.read_text().replace("profile: test", "profile: local"))
    with pytest.raises(RuntimeError, match="status"), serving(tmp_path / "data", "--manifest", str(faked)):
        pass
    assert "only the profile test may name" in (tmp_path / "data.log").read_text()
