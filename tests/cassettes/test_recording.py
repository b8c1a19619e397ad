"""What a recording holds: names in the places of ids, nothing of what is secret; and what a crash leaves of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2, struct_pb2
from google.rpc import error_details_pb2

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible.port.blob.v1 import blob_pb2
from crucible_kit.cassettes.format import read_cassette
from crucible_kit.cassettes.redaction import Redactor
from crucible_kit.cassettes.verify import verify_cassette
from crucible_kit.channel import connect
from crucible_kit.errors import InvalidArgumentError, KitchenError, NotFoundError
from crucible_kit.ports import PORTS
from tests.cassettes.conftest import Studio, all_of, sent
from tests.cassettes.scratch import Note, PollRequest, Talk
from tests.kit.notes import ScriptedBlobs

ROOT = Path(__file__).parents[2]
SECRET = "sk-hunter2-0123456789"


def written(studio: Studio) -> str:
    """Everything that a recorder left in its folder, bytes in base64 decoded too."""
    text = []
    for path in studio.folder.rglob("*"):
        if path.is_file():
            text.append(path.read_bytes().decode("latin-1"))
            if path.suffix == ".jsonl":
                text += [repr(each) for call in read_cassette(path).calls for each in (*call.requests, *call.responses)]
    return "\n".join(text)


async def test_ids_that_the_adapter_made_get_names(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk())
    session = (await stub.Ask(Note(text="open"))).session_id
    work = Note(text="work", session_id=session, sequence=1)
    operation = (await stub.Ask(work)).operation.id
    await stub.AwaitOperation(PollRequest(session_id=session, operation_id=operation))
    with pytest.raises(NotFoundError):
        await stub.Ask(Note(text="missing", session_id=session))
    with pytest.raises(NotFoundError):
        await stub.Ask(Note(text="missing", session_id="of the caller's own"))
    cassette = await finish()
    opened, worked, polled, failed, literal = cassette.calls
    assert opened.responses[0].session_id == "${bind:session_1}"
    assert opened.steps[1].bind == {"session_1": session}
    assert (worked.requests[0].session_id, worked.responses[0].operation.id) == ("${session_1}", "${bind:operation_1}")
    assert polled.requests[0] == PollRequest(session_id="${session_1}", operation_id="${operation_1}")
    assert polled.responses[0].operation.id == "${operation_1}"
    # Within a text, and in the details of an error.
    assert failed.steps[-1].status.message == "there is no note of ${session_1}"
    assert "${session_1}" in json.dumps(failed.steps[-1].tree["details"])
    assert literal.requests[0].session_id == "of the caller's own"


async def test_uuids_of_the_caller_get_names(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk())
    mine, other = str(uuid.uuid4()), str(uuid.uuid4())
    for request_id in (mine, other, mine):
        await stub.Ask(Note(text="hello", request_id=request_id))
    said = [call.requests[0].request_id for call in (await finish()).calls]
    assert said == ["${uuid:request_1}", "${uuid:request_2}", "${request_1}"]


async def test_short_ids_of_two_sessions_are_told_apart(studio: Studio) -> None:
    """An adapter may number its operations from one in each session; and a text of `1` is no id."""

    class Numbering(Talk):
        async def Ask(self, note: Any, context: Any) -> Any:
            if note.text == "open":
                self.sessions += 1
                return Note(session_id=str(self.sessions))
            if note.text == "work":
                return Note(operation={"id": "1"}, tags=["1"])
            return Note(text=note.text)

    stub, _, finish = await studio.recording(Numbering())
    for session in ((await stub.Ask(Note(text="open"))).session_id, (await stub.Ask(Note(text="open"))).session_id):
        await stub.Ask(Note(text="work", session_id=session))
    await stub.Ask(Note(text="1"))
    calls = (await finish()).calls
    assert [call.responses[0].operation.id for call in calls[2:4]] == ["${bind:operation_1}", "${bind:operation_2}"]
    assert [call.requests[0].session_id for call in calls[2:4]] == ["${session_1}", "${session_2}"]
    assert (calls[2].responses[0].tags[0], calls[4].requests[0].text) == ("1", "1")


async def test_what_the_caller_chooses_becomes_a_parameter(studio: Studio) -> None:
    parameters = {"folder": ("/srv/models/seven", "a model's folder")}
    stub, _, finish = await studio.recording(Talk(), parameters=parameters)
    await stub.Ask(Note(text="/srv/models/seven", tags=["in /srv/models/seven/config.json"]))
    cassette = await finish()
    assert cassette.header.parameters == {"folder": "a model's folder"}
    (call,) = cassette.calls
    assert (call.requests[0].text, call.requests[0].tags[0]) == ("${set:folder}", "in ${set:folder}/config.json")
    assert call.responses[0].text == "${set:folder}!"
    with pytest.raises(InvalidArgumentError, match="shorter than 4 characters"):
        studio.writer("other.jsonl", parameters={"x": ("abc", "")})


async def test_texts_that_look_like_placeholders_stay_what_they_are(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk())
    texts = ["${bind:x}", "$${y}", "a ${z", "${secret:w} and more", "$", "$$", "pay $5"]
    answers = [(await stub.Ask(Note(text=text))).text for text in texts]
    cassette = await finish()
    assert verify_cassette(cassette.path).problems == []
    replayed, _ = await studio.replay(cassette)
    assert [(await replayed.Ask(Note(text=text))).text for text in texts] == answers == [f"{text}!" for text in texts]


@pytest.mark.parametrize("how", ["channel", "proxy"])
async def test_no_secret_is_written(studio: Studio, how: str) -> None:
    """Planted in every place where one can be; the adapter says it again in every place where it can."""

    class Indiscreet(Talk):
        async def Ask(self, note: Any, context: Any) -> Any:
            await self._act(note)
            answer = Note(text=f"I know {SECRET}", data=f"it is {SECRET}".encode(), tags=[SECRET], session_id=SECRET)
            answer.pieces.append(SECRET.encode() * 40)
            answer.labels[f"{SECRET}-key"] = "x"
            answer.settings.update({"inside": {SECRET: SECRET}})
            answer.packed.Pack(error_details_pb2.ErrorInfo(metadata={"key": SECRET}))
            answer.child.children.add().password = SECRET
            return answer

    stub, _, finish = await studio.recording(Indiscreet(), how)
    await stub.Ask(
        Note(
            # Before the field that says that it is secret.
            text=f"before {SECRET}",
            password=SECRET,
            passwords={"api_key": "of-the-map-1234", "short": "abc"},
            secret_data=b"of-the-bytes",
            child=Note(passwords={"deep": "of-the-depth-1234"}),
        ),
        metadata=(("authorization", "Bearer of-the-header-1234"), ("crucible-instance", f"for-{SECRET}")),
    )
    with pytest.raises(NotFoundError) as caught:
        await stub.Ask(Note(text="missing", session_id=f"of-the-header-1234 {SECRET}", password=SECRET))
    assert SECRET in caught.value.message
    cassette = await finish()
    text = written(studio)
    for secret in (SECRET, "of-the-map-1234", "of-the-bytes", "of-the-depth-1234", "of-the-header-1234", '"abc"'):
        assert secret not in text
    request, response = cassette.calls[0].requests[0], cassette.calls[0].responses[0]
    assert request.password == "${secret:password}"
    assert dict(request.passwords) == {"api_key": "${secret:api_key}", "short": "${secret:short}"}
    assert request.text == "before ${secret:password}"
    assert response.data == b"it is " + b"*" * len(SECRET)
    assert verify_cassette(cassette.path).problems == []


async def test_a_secret_that_was_said_before_it_was_known_to_be_one(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk())
    await stub.Ask(Note(text=f"early {SECRET}"))
    await stub.Ask(Note(text="later", password=SECRET))
    first, _ = (await finish()).calls
    assert SECRET not in written(studio)
    assert (first.requests[0].text, first.responses[0].text) == (
        "early ${secret:password}",
        "early ${secret:password}!",
    )


async def test_a_secret_with_odd_characters_and_one_called_like_its_field(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk())
    odd = 'pa$${x}"\\ä'
    await stub.Ask(Note(text=f"${odd}$", password=odd, session_id=f"{odd}", tags=["password"]))
    await stub.Ask(Note(text="the password is password", passwords={"password": "password"}))
    first, second = (await finish()).calls
    assert odd not in written(studio)
    assert (first.requests[0].text, first.requests[0].tags[0]) == ("$$${secret:password}$$", "${secret:password}")
    assert second.requests[0].text == "the ${secret:password} is ${secret:password}"


async def test_a_session_with_and_after_a_dollar(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk(ids="0$1$$2${x}"))
    session = (await stub.Ask(Note(text="open"))).session_id
    await stub.Ask(Note(text=session, session_id=session))
    cassette = await finish()
    assert verify_cassette(cassette.path).problems == []
    replayed, _ = await studio.replay(cassette)
    assert (await replayed.Ask(Note(text="open"))).session_id == session
    assert (await replayed.Ask(Note(text=session, session_id=session))).text == f"{session}!"


async def test_an_id_right_after_a_dollar(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk())
    session = (await stub.Ask(Note(text="open"))).session_id
    await stub.Ask(Note(text=f"${session}"))
    cassette = await finish()
    assert cassette.calls[1].requests[0].text == "$$${session_1}"
    replayed, _ = await studio.replay(cassette)
    await replayed.Ask(Note(text="open"))
    assert (await replayed.Ask(Note(text=f"${session}"))).text == f"${session}!"


async def test_a_secret_that_is_part_of_an_id_that_was_named_before(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk(ids=SECRET))
    session = (await stub.Ask(Note(text="open"))).session_id
    await stub.Ask(Note(text="later", session_id=session, password=SECRET))
    await finish()
    assert SECRET not in written(studio)


async def test_values_that_only_the_recorder_knows(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk(), redactor=Redactor([SECRET]))
    await stub.Ask(Note(text=f"key={SECRET}", data=SECRET.encode() * 30))
    (call,) = (await finish()).calls
    assert SECRET not in written(studio)
    assert call.requests[0].text == "key=${secret:value}"


async def test_secrets_of_the_settings_that_a_host_sends(studio: Studio) -> None:
    """AdapterService is recorded too, and its secrets field is one."""
    _, channel, finish = await studio.recording(Talk())
    adapter = adapter_pb2_grpc.AdapterServiceStub(channel)  # type: ignore[arg-type]
    configure = adapter_pb2.ConfigureRequest(service="crucible.x", generation=1, secrets={"api_key": SECRET})
    with pytest.raises(KitchenError):
        await adapter.Configure(configure)
    (call,) = (await finish()).calls
    assert call.method.full_name == "crucible.adapter.v1.AdapterService/Configure"
    assert dict(call.requests[0].secrets) == {"api_key": "${secret:api_key}"}
    assert SECRET not in written(studio)


async def test_a_secret_matches_whatever_is_sent(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk())
    await stub.Ask(Note(text="hello", password=SECRET, passwords={"a": SECRET}, secret_data=b"x"))
    replayed, _ = await studio.replay(await finish())
    other = Note(text="hello", password="another", passwords={"a": "third"}, secret_data=b"y")
    with pytest.raises(KitchenError, match=r"request\.password"):
        await replayed.Ask(Note(text="hello", passwords={"a": "third"}, secret_data=b"y"))
    assert (await replayed.Ask(other)).text == "hello!"


async def test_what_this_build_does_not_know_is_left_out(studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
    class Newer(Talk):
        async def Ask(self, note: Any, context: Any) -> Any:
            return Note.FromString(Note(text="known").SerializeToString() + b"\xfa\x3f\x03new")

    stub, _, finish = await studio.recording(Newer())
    unknown = any_pb2.Any(type_url="type.googleapis.com/not.known.Here", value=b"123")
    await stub.Ask(Note(packed=unknown, settings=struct_pb2.Struct()))
    (call,) = (await finish()).calls
    assert call.requests[0] == Note(settings=struct_pb2.Struct())
    assert call.responses[0] == Note(text="known")
    assert sum("this build does not know" in record.message for record in caplog.records) == 2


async def test_other_services_pass_by_unrecorded(studio: Studio) -> None:
    stub, channel, finish = await studio.recording(ScriptedBlobs(), port="blob")
    unknown: Any = channel.unary_unary(
        "/some.other.Service/Do", request_serializer=lambda _: b"", response_deserializer=lambda data: data
    )
    with pytest.raises(KitchenError) as caught:
        await unknown(blob_pb2.StatBlobRequest(key="x"))
    assert caught.value.reason == "METHOD_MISSING"
    await stub.StatBlob(blob_pb2.StatBlobRequest(key="x"))
    cassette = await finish()
    assert [call.method.name for call in cassette.calls] == ["StatBlob"]
    assert cassette.header.services == ["crucible.port.blob.v1.BlobStoreService"]


async def test_a_target_that_is_away(studio: Studio) -> None:
    served = await studio.serve(Talk())
    stub, _, finish = await studio.recording(Talk())
    await served.stop(0)
    await stub.Ask(Note(text="hello"))
    assert len((await finish()).calls) == 1


class Recorder:
    """`kitchen record` as a process."""

    def __init__(self, target: str, output: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "crucible_kitchen.cli", "record", "--target", target, "--output", str(output)]
        self.process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        announced = json.loads(self.process.stdout.readline())
        assert announced["crucible"] == 1
        self.address: str = announced["address"]

    def end(self, number: signal.Signals) -> int:
        """Sends a signal and waits."""
        os.kill(self.process.pid, number)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(60)


async def blob_calls(address: str, count: int) -> None:
    """Calls that end, and one that hangs."""
    channel = connect(address, retry=False)
    stub: Any = PORTS["blob"].stub(channel)
    for index in range(count):
        await all_of(stub.ReadBlob(blob_pb2.ReadBlobRequest(key=f"key-{index}", limit=2)))
    hanging = stub.ReadBlob(blob_pb2.ReadBlobRequest(key="hang", limit=1))
    await anext(hanging)
    await channel.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_process_completes_its_file(studio: Studio, number: signal.Signals) -> None:
    served = await studio.serve(ScriptedBlobs(), "blob")
    output = studio.folder / "case.jsonl"
    recorder = await asyncio.to_thread(Recorder, served.address, output, "--requires", "blob.x", "--service", "blob")
    await blob_calls(recorder.address, 3)
    assert await asyncio.to_thread(recorder.end, number) == 0
    cassette = read_cassette(output)
    assert cassette.complete
    assert cassette.header.requires == ["blob.x"]
    assert [call.steps[-1].kind for call in cassette.calls] == ["status", "status", "status", "cancel"]


async def test_a_killed_process_leaves_a_prefix(studio: Studio) -> None:
    served = await studio.serve(ScriptedBlobs(), "blob")
    output = studio.folder / "case.jsonl"
    recorder = await asyncio.to_thread(Recorder, served.address, output)
    channel = connect(recorder.address, retry=False)
    stub: Any = PORTS["blob"].stub(channel)
    await all_of(stub.ReadBlob(blob_pb2.ReadBlobRequest(key="whole", limit=2)))
    hanging = stub.ReadBlob(blob_pb2.ReadBlobRequest(key="hang", limit=1))
    await anext(hanging)
    await asyncio.to_thread(recorder.end, signal.SIGKILL)
    await channel.close()
    cassette = read_cassette(output)
    assert (len(cassette.calls), cassette.unfinished, cassette.complete) == (1, [2], False)
    assert "recorder was not ended in order" in verify_cassette(output).problems[0]
    replayed, _ = await studio.replay(cassette, port="blob")
    assert len(await all_of(replayed.ReadBlob(blob_pb2.ReadBlobRequest(key="whole", limit=2)))) == 2


async def test_large_messages(studio: Studio) -> None:
    stub, _, finish = await studio.recording(Talk(), "channel")
    big = [Note(text="x", data=bytes([index]) * 1_000_000) for index in range(3)]
    await stub.Tell(sent(*big))
    (call,) = (await finish()).calls
    assert [len(each.data) for each in call.requests] == [1_000_000] * 3
    assert (studio.folder / "case.jsonl").stat().st_size < 5000
