"""What the replayer answers, to calls as recorded and to others; order, polls, repeats."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible.port.blob.v1 import blob_pb2
from crucible.type.v1 import operation_pb2
from crucible_kit.cassettes.format import Cassette, Header, read_cassette, write_cassette
from crucible_kit.cassettes.matching import Approximate, Rules
from crucible_kit.channel import connect, open_channel
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, KitchenError
from crucible_kit.ports import PORTS
from crucible_kitchen.cli.reflection import ServerReflection
from tests.cassettes.conftest import Studio, all_of, sent
from tests.cassettes.scratch import SERVICE, Note, PollRequest, Talk

ROOT = Path(__file__).parents[2]


async def mismatch(call: Any) -> FailedPreconditionError:
    """The error of a call that is not in the recording."""
    with pytest.raises(FailedPreconditionError) as caught:
        await call
    assert caught.value.reason == "CASSETTE_MISMATCH"
    return caught.value


async def record_asks(studio: Studio, *requests: Any, **details: Any) -> Cassette:
    """A recording of one call after the other."""
    stub, _, finish = await studio.recording(Talk(), "channel", **details)
    for each in requests:
        await stub.Ask(each)
    return await finish()


async def record_sessions(studio: Studio, count: int = 2, steps: int = 2) -> Cassette:
    """Sessions one after the other; in each, work and the poll for it."""
    stub, _, finish = await studio.recording(Talk(), "channel")
    for _ in range(count):
        session = (await stub.Ask(Note(text="open", request_id=str(uuid.uuid4())))).session_id
        for sequence in range(1, steps + 1):
            operation = (await stub.Ask(Note(text="work", session_id=session, sequence=sequence))).operation.id
            await stub.AwaitOperation(PollRequest(session_id=session, operation_id=operation))
    return await finish()


def opening() -> Any:
    return Note(text="open", request_id=str(uuid.uuid4()))


@pytest.mark.parametrize(
    ("sent_instead", "path", "expected", "got"),
    [
        (Note(text="hallo", number=5), "request.text", "'hello'", "'hallo'"),
        (Note(text="hello", number=6), "request.number", "5", "6"),
        (Note(text="hello", number=5, data=b"\1\2"), "request.data", "0 bytes", "2 bytes 0102"),
        (Note(text="hello", number=5, tags=["a"]), "request.tags", "2 entries", "1 entries"),
        (Note(text="hello", number=5, tags=["a", "c"]), "request.tags[1]", "'b'", "'c'"),
        (
            Note(text="hello", number=5, tags=["a", "b"], labels={"k": "v"}),
            "request.child",
            'text: "deep" number: 1',
            "nothing",
        ),
        (
            Note(text="hello", number=5, tags=["a", "b"], labels={"k": "v"}, child=Note(text="deep")),
            "request.child.number",
            "1",
            "0",
        ),
        (
            Note(text="hello", number=5, tags=["a", "b"], child=Note(text="deep", number=1), labels={"k": "w"}),
            "request.labels['k']",
            "'v'",
            "'w'",
        ),
        (
            Note(text="hello", number=5, tags=["a", "b"], labels={"k": "v"}, child=Note(text="deep", number=1)),
            "request.flag",
            "False",
            "nothing",
        ),
    ],
)
async def test_the_first_field_that_differs_is_told(
    studio: Studio, sent_instead: Any, path: str, expected: str, got: str
) -> None:
    recorded = Note(
        text="hello", number=5, tags=["a", "b"], child=Note(text="deep", number=1), labels={"k": "v"}, flag=False
    )
    stub, replayer = await studio.replay(await record_asks(studio, recorded))
    error = await mismatch(stub.Ask(sent_instead))
    assert (error.metadata["field"], error.metadata["expected"], error.metadata["got"]) == (path, expected, got)
    assert error.message == (f"{SERVICE}/Ask: {path}: the recording has {expected}, got {got} (case.jsonl, call 1)")
    # It was not used up.
    assert (await stub.Ask(recorded)).text == "hello!"
    assert len(replayer.playback.mismatches) == 1


async def test_one_call_too_many(studio: Studio) -> None:
    stub, _ = await studio.replay(await record_asks(studio, Note(text="a")))
    await stub.Ask(Note(text="a"))
    assert "the recording has no further call, got Ask" in (await mismatch(stub.Ask(Note(text="a")))).message
    assert "got Tell" in (await mismatch(stub.Tell(sent(Note(text="a"))))).message


async def test_a_method_whose_turn_is_not_now(studio: Studio) -> None:
    stub, _ = await studio.replay(await record_asks(studio, Note(text="a")))
    error = await mismatch(all_of(stub.Listen(Note(number=1))))
    assert "the recording has Ask next, got Listen" in error.message


async def test_streams_of_requests_that_are_not_as_recorded(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk(), "channel")
    await stub.Tell(sent(Note(text="a"), Note(text="b"), Note(text="c")))
    replayed, _ = await studio.replay(await finish())
    a, b, c = (Note(text=text) for text in "abc")
    error = await mismatch(replayed.Tell(sent(a, Note(text="x"), c)))
    assert error.metadata["field"] == "request[1].text"
    error = await mismatch(replayed.Tell(sent(a, b)))
    assert (error.metadata["field"], error.metadata["expected"]) == ("request[2]", "another request")
    error = await mismatch(replayed.Tell(sent(a, b, c, c)))
    assert (error.metadata["field"], error.metadata["got"]) == ("request[3]", "another request")
    assert (await replayed.Tell(sent(a, b, c))).text == "a b c"


async def test_streams_that_begin_alike(studio: Studio) -> None:
    """Which recorded call it is shows late; with any order both are found, whichever comes first."""
    stub, _, finish = await studio.recording(Talk(), "channel")
    first = [Note(text="head"), Note(text="one")]
    second = [Note(text="head"), Note(text="two"), Note(text="tail")]
    said = [(await stub.Tell(sent(*each))).text for each in (first, second)]
    cassette = await finish()
    replayed, _ = await studio.replay(cassette, order="any")
    assert [(await replayed.Tell(sent(*each))).text for each in (second, first)] == said[::-1]
    strict, _ = await studio.replay(cassette)
    assert (await mismatch(strict.Tell(sent(*second)))).metadata["field"] == "order"


async def test_calls_without_a_session_keep_their_order(studio: Studio) -> None:
    cassette = await record_asks(studio, Note(text="a"), Note(text="b"))
    strict, _ = await studio.replay(cassette)
    error = await mismatch(strict.Ask(Note(text="b")))
    assert (error.metadata["field"], error.metadata["expected"]) == ("order", "Ask, call 1")
    free, _ = await studio.replay(cassette, order="any")
    assert [(await free.Ask(Note(text=text))).text for text in "ba"] == ["b!", "a!"]


async def test_a_call_waits_for_those_before_it(studio: Studio) -> None:
    """Calls on one connection may overtake each other."""
    cassette = await record_asks(studio, Note(text="a"), Note(text="b"), Note(text="c"))
    stub, _ = await studio.replay(cassette, hold_seconds=60.0)
    early = [asyncio.ensure_future(stub.Ask(Note(text=text))) for text in "cb"]
    first = await stub.Ask(Note(text="a"))
    assert [first.text, *(each.text for each in await asyncio.gather(*early))] == ["a!", "c!", "b!"]


async def test_what_was_under_way_together_may_come_either_way_round(studio: Studio) -> None:
    """Two calls that overlapped when they were recorded; the third had to wait for both."""
    lines: list[dict[str, Any]] = [{"call": number, "method": f"{SERVICE}/Ask"} for number in (1, 2)]
    lines += [{"call": number, "request": {"text": text}} for number, text in ((1, "a"), (2, "b"))]
    for number, text in ((1, "a"), (2, "b")):
        lines += [{"call": number, "response": {"text": text}}, {"call": number, "status": {"code": "OK"}}]
    lines += [
        {"call": 3, "method": f"{SERVICE}/Ask"},
        {"call": 3, "request": {"text": "c"}},
        {"call": 3, "response": {"text": "c"}},
        {"call": 3, "status": {"code": "OK"}},
    ]
    path = studio.folder / "overlap.jsonl"
    write_cassette(path, Header(services=[SERVICE]), lines)
    for order in ("abc", "bac"):
        stub, _ = await studio.replay(read_cassette(path))
        assert [(await stub.Ask(Note(text=text))).text for text in order] == list(order)
    stub, _ = await studio.replay(read_cassette(path))
    await stub.Ask(Note(text="b"))
    assert (await mismatch(stub.Ask(Note(text="c")))).metadata["expected"] == "Ask, call 1"


async def test_sessions_are_free_of_each_other(studio: Studio) -> None:
    """Order holds within a session; the recorded sessions came one after the other, here they alternate."""
    cassette = await record_sessions(studio)
    stub, replayer = await studio.replay(cassette)
    first, second = (await stub.Ask(opening())).session_id, (await stub.Ask(opening())).session_id
    assert first != second
    await stub.Ask(Note(text="work", session_id=second, sequence=1))
    error = await mismatch(stub.Ask(Note(text="work", session_id=first, sequence=2)))
    assert (error.metadata["field"], error.metadata["expected"]) == ("order", "Ask, call 2")
    for session, sequence in ((first, 1), (second, 2), (first, 2)):
        await stub.Ask(Note(text="work", session_id=session, sequence=sequence))
    assert replayer.playback.tracks[0].played


async def test_a_session_that_nobody_opened(studio: Studio) -> None:
    cassette = await record_sessions(studio, count=1)
    stub, _ = await studio.replay(cassette)
    recorded = next(step.bind["session_1"] for step in cassette.calls[0].steps if "session_1" in step.bind)
    # The id is the recorded one, yet its session was not opened here.
    await mismatch(stub.Ask(Note(text="work", session_id=recorded, sequence=1)))
    assert (await stub.Ask(opening())).session_id == recorded


@pytest.mark.parametrize("polls", [1, 4])
async def test_polls_may_be_more_or_fewer_than_recorded(studio: Studio, polls: int) -> None:
    """Every poll gets the final answer, once the call that made the operation was replayed."""
    stub, _, finish = await studio.recording(Talk(polls=polls), "channel")
    session = (await stub.Ask(opening())).session_id
    operation = (await stub.Ask(Note(text="work", session_id=session, sequence=1))).operation.id
    poll = PollRequest(session_id=session, operation_id=operation)
    for _ in range(polls):
        last = await stub.AwaitOperation(poll)
    assert last.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED
    cassette = await finish()
    replayed, _ = await studio.replay(cassette)
    await replayed.Ask(opening())
    assert "no answer for it, or none yet" in (await mismatch(replayed.AwaitOperation(poll))).message
    await replayed.Ask(Note(text="work", session_id=session, sequence=1))
    for wait in (0, 20, 1):
        poll.wait.seconds = wait
        assert await replayed.AwaitOperation(poll) == last


async def test_an_operation_that_never_finished(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk(polls=9), "channel")
    session = (await stub.Ask(opening())).session_id
    operation = (await stub.Ask(Note(text="work", session_id=session, sequence=1))).operation.id
    poll = PollRequest(session_id=session, operation_id=operation)
    await stub.AwaitOperation(poll)
    with pytest.raises(KitchenError):
        await stub.AwaitOperation(PollRequest(session_id=session, operation_id="none"))
    replayed, _ = await studio.replay(await finish())
    await replayed.Ask(opening())
    await replayed.Ask(Note(text="work", session_id=session, sequence=1))
    assert (await replayed.AwaitOperation(poll)).operation.state == operation_pb2.OPERATION_STATE_RUNNING
    with pytest.raises(KitchenError, match="no such operation"):
        await replayed.AwaitOperation(PollRequest(session_id=session, operation_id="none"))


async def test_a_repeated_call_gets_its_answer_again(studio: Studio) -> None:
    stub, _ = await studio.replay(await record_sessions(studio, count=1))
    opened = opening()
    session = (await stub.Ask(opened)).session_id
    assert (await stub.Ask(opened)).session_id == session
    work = Note(text="work", session_id=session, sequence=1)
    first = await stub.Ask(work)
    assert await stub.Ask(work) == first
    work.number = 3
    assert (await mismatch(stub.Ask(work))).metadata["field"] == "request.number"


async def test_a_recording_starts_over_when_it_may(studio: Studio) -> None:
    cassette = await record_sessions(studio, count=1, steps=1)

    async def play(stub: Any) -> Any:
        session = (await stub.Ask(opening())).session_id
        return await stub.Ask(Note(text="work", session_id=session, sequence=1))

    once, _ = await studio.replay(cassette)
    said = await play(once)
    await mismatch(once.Ask(opening()))
    again, _ = await studio.replay(cassette, repeat=True)
    assert [await play(again), await play(again), await play(again)] == [said] * 3
    # Not from its middle.
    await again.Ask(opening())
    assert (await mismatch(again.Ask(Note(text="work", session_id="x", sequence=1)))).reason == "CASSETTE_MISMATCH"


async def test_numbers_are_exact_unless_a_rule_says_otherwise(studio: Studio) -> None:
    floats = np.array([1.0, 2.0], "<f4")
    recorded = Note(text="x", ratio=0.1, logprobs_float32=floats.tobytes(), number=1, labels={"took_s": "3", "k": "v"})
    near = Note()
    near.CopyFrom(recorded)
    near.ratio = 0.1 + 1e-9
    near.logprobs_float32 = (floats * np.float32(1 + 1e-6)).tobytes()
    exact, _ = await studio.replay(await record_asks(studio, recorded))
    assert (await mismatch(exact.Ask(near))).metadata["field"] == "request.ratio"
    rules = Rules(
        ignore=["Ask/request.labels['*_s']", "Tell/request.number"],
        approx=[Approximate(path="request.ratio"), Approximate(path="request.logprobs_float32", rtol=1e-4)],
    )
    cassette = await record_asks(studio, recorded, name="second.jsonl", rules=rules)
    # `finish` reads case.jsonl.
    cassette = read_cassette(studio.folder / "second.jsonl")
    stub, _ = await studio.replay(cassette)
    near.labels["took_s"] = "900"
    far = Note()
    far.CopyFrom(near)
    far.logprobs_float32 = (floats + 1).tobytes()
    error = await mismatch(stub.Ask(far))
    assert (error.metadata["field"], error.metadata["got"]) == ("request.logprobs_float32[0]", "2.0")
    far.CopyFrom(near)
    far.number = 2
    assert (await mismatch(stub.Ask(far))).metadata["field"] == "request.number"
    answer = await stub.Ask(near)
    assert (answer.ratio, answer.logprobs_float32) == (0.1, floats.tobytes()), "what was recorded, to the bit"


async def test_rules_in_a_file_beside_the_cassette(studio: Studio) -> None:
    cassette = await record_asks(studio, Note(text="x", number=1))
    rules = studio.folder / "case.jsonl.rules.yaml"
    rules.write_text("ignore:\n  - request.number\n")
    stub, _ = await studio.replay(cassette)
    assert (await stub.Ask(Note(text="x", number=7))).text == "x!"
    rules.write_text("ignroe: []\n")
    with pytest.raises(InvalidArgumentError, match="did you mean ignore"):
        await studio.replay(cassette)


async def test_what_the_caller_chose_comes_back(studio: Studio) -> None:
    cassette = await record_asks(
        studio, Note(text="/srv/seven", session_id="s"), parameters={"folder": ("/srv/seven", "")}
    )
    stub, _ = await studio.replay(cassette)
    assert (await stub.Ask(Note(text="/home/mine", session_id="s"))).text == "/home/mine!"


async def test_several_recordings_at_once(studio: Studio) -> None:
    first = await record_asks(studio, Note(text="a"))
    await record_asks(studio, Note(text="b"), name="second.jsonl")
    stub, _ = await studio.replay(first, read_cassette(studio.folder / "second.jsonl"))
    assert [(await stub.Ask(Note(text=text))).text for text in "ba"] == ["b!", "a!"]


async def test_a_request_with_a_field_that_no_recording_could_show(studio: Studio) -> None:
    stub, _ = await studio.replay(await record_asks(studio, Note(text="a")))
    with pytest.raises(InvalidArgumentError, match="this server's contract does not have it"):
        await stub.Ask(Note.FromString(Note(text="a").SerializeToString() + b"\xfa\x3f\x03new"))


async def test_the_adapters_handshake(studio: Studio) -> None:
    """As the recorded adapter said it, with an instance id of this process."""
    stub, channel, finish = await studio.recording(Talk())
    request = adapter_pb2.GetAdapterInfoRequest(host_contract_versions=[1])
    said = await adapter_pb2_grpc.AdapterServiceStub(channel).GetAdapterInfo(request)  # type: ignore[arg-type]
    await stub.Ask(Note(text="a"))
    _, replayer = await studio.replay(await finish())
    adapter = adapter_pb2_grpc.AdapterServiceStub(studio.connect(replayer.address))  # type: ignore[arg-type]
    instance = said.instance_id
    for _ in range(2):
        info = await adapter.GetAdapterInfo(request)
        assert info.instance_id != instance
        said.instance_id = info.instance_id
        assert info == said
        assert (await adapter.Probe(adapter_pb2.ProbeRequest())).state == adapter_pb2.ProbeResponse.STATE_READY
    with pytest.raises(KitchenError, match="no common contract version"):
        await adapter.GetAdapterInfo(adapter_pb2.GetAdapterInfoRequest(host_contract_versions=[9]))
    with pytest.raises(KitchenError) as caught:
        await adapter.Configure(adapter_pb2.ConfigureRequest(service=SERVICE, generation=1))
    assert caught.value.reason == "CAPABILITY_MISSING"


async def test_a_handshake_that_was_not_recorded(studio: Studio) -> None:
    cassette = await record_asks(studio, Note(text="a"), requires=["talk.aloud"])
    _, replayer = await studio.replay(cassette)
    adapter = adapter_pb2_grpc.AdapterServiceStub(studio.connect(replayer.address))  # type: ignore[arg-type]
    info = await adapter.GetAdapterInfo(adapter_pb2.GetAdapterInfoRequest(host_contract_versions=[1]))
    (port,) = info.ports
    assert (port.service, list(port.capabilities)) == (SERVICE, ["talk.aloud"])
    assert port.descriptor_sha256 == cassette.header.descriptor_sha256[SERVICE]


async def test_health_and_reflection(studio: Studio) -> None:
    _, replayer = await studio.replay(await record_asks(studio, Note(text="a")))
    async with open_channel(replayer.address) as channel:
        server = ServerReflection(channel)
        assert {SERVICE, "crucible.adapter.v1.AdapterService", "grpc.health.v1.Health"} <= set(await server.services())
        method = await server.find_method(f"{SERVICE}/Chat")
        assert (method.client_streaming, method.server_streaming) == (True, True)
        check: Any = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        for service in ("", SERVICE):
            answer = await check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


class Replaying:
    """`kitchen replay` as a process that a host starts."""

    def __init__(self, *arguments: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "crucible_kitchen.cli", "replay", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert self.process.stdout is not None
        self.announced = json.loads(self.process.stdout.readline())

    def end(self) -> tuple[int, str]:
        """Closes its stdin; its status and what it wrote."""
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


async def test_the_process_serves_as_an_adapter_that_a_host_starts(studio: Studio) -> None:
    """It listens where the host wants it, says so, ends with its stdin, and tells of what did not fit."""
    address = studio.socket()
    recording = str(ROOT / "tests" / "stubs" / "blob" / "local.jsonl")
    environment = {**os.environ, "CRUCIBLE_ADAPTER_LISTEN": address}
    process = await asyncio.to_thread(Replaying, recording, environment=environment)
    assert process.announced == {"crucible": 1, "address": address}
    channel = connect(address, retry=False)
    stub: Any = PORTS["blob"].stub(channel)
    await mismatch(stub.StatBlob(blob_pb2.StatBlobRequest(key="nowhere")))
    await channel.close()
    status, errors = await asyncio.to_thread(process.end)
    assert status == 1
    assert "request.key: the recording has 'notes/one', got 'nowhere'" in errors
    assert "0 of 23 calls came" in errors
