"""A recording held against a real adapter: what must be the same is compared, what each adapter makes up is not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible_adapters.blob.local import LocalBlobOptions, LocalBlobStore
from crucible_kit.adapter import AdapterContext
from crucible_kit.cassettes.check import Report, check_cassette
from crucible_kit.cassettes.format import Cassette
from crucible_kit.cassettes.matching import Approximate, Rules
from crucible_kit.errors import InvalidArgumentError, KitchenError, NotFoundError
from crucible_kitchen.cli.stubs import target_channel
from tests.cassettes.conftest import Studio, all_of, sent
from tests.cassettes.scratch import Note, PollRequest, Talk

ROOT = Path(__file__).parents[2]
FLOATS = np.array([1.5, -2.5], "<f4").tobytes()


async def scenario(stub: Any) -> None:
    """Everything that can be compared: ids, numbers, streams, errors, polls, a call that is given up."""
    session = (await stub.Ask(Note(text="open", request_id=str(uuid.uuid4())))).session_id
    operation = (await stub.Ask(Note(text="work", session_id=session, sequence=1))).operation.id
    await stub.AwaitOperation(PollRequest(session_id=session, operation_id=operation))
    await stub.Ask(Note(text="hello", ratio=2.0, session_id=session, logprobs_float32=FLOATS))
    await all_of(stub.Listen(Note(number=2)))
    await all_of(stub.Chat(sent(Note(text="x"), Note(text="y"))))
    await stub.Tell(sent(Note(text="a"), Note(text="b")))
    for call in (stub.Ask(Note(text="missing", session_id=session)), stub.Tell(sent(Note(text="bad")))):
        with pytest.raises(KitchenError):
            await call
    stream = stub.Listen(Note(number=1, text="hang"))
    await anext(stream)
    await stream.aclose()


async def record(studio: Studio, **details: Any) -> Cassette:
    stub, _, finish = await studio.recording(Talk(), **details)
    await scenario(stub)
    return await finish()


async def check(studio: Studio, cassette: Cassette, servicer: Any, **options: Any) -> Report:
    served = await studio.serve(servicer, capabilities=options.pop("capabilities", ()))
    with target_channel(served.address, None) as channel:
        return await asyncio.to_thread(check_cassette, cassette, channel, **options)


def told(report: Report) -> list[tuple[str, str]]:
    return [(finding.call.method.name, finding.difference.path) for finding in report.findings]


async def test_another_adapter_that_behaves_the_same(studio: Studio) -> None:
    """Its ids are its own, its operations take longer, its numbers differ in the last bits."""
    cassette = await record(studio)
    report = await check(studio, cassette, Talk(ids="completely-different", polls=3, factor=1 + 1e-6))
    assert told(report) == []
    assert report.checked == len(cassette.calls) == 10


async def test_numbers_that_are_off(studio: Studio) -> None:
    cassette = await record(studio)
    report = await check(studio, cassette, Talk(factor=1.01))
    assert told(report) == [("AwaitOperation", "response.ratio"), ("Ask", "response.ratio")]
    wide = Approximate(path="response.**", rtol=0.1)
    assert told(await check(studio, cassette, Talk(factor=1.01), tolerance=wide)) == []
    assert [str(finding) for finding in report.findings][1] == (
        "call 4 (line 14), Ask: response.ratio: the recording has 2.0, got 2.02"
    )


async def test_an_adapter_that_behaves_otherwise(studio: Studio) -> None:
    class Other(Talk):
        async def _act(self, note: Any) -> None:
            if note.text == "missing":
                raise InvalidArgumentError("no", reason="OTHER")
            await super()._act(note)

        async def Listen(self, note: Any, context: Any) -> Any:
            yield Note(number=0, data=b"\0" * 300)
            if note.text == "hang":
                await asyncio.Event().wait()

        async def Tell(self, notes: Any, context: Any) -> Any:
            async for _ in notes:
                pass
            return Note(text="b a", number=2)

    cassette = await record(studio)
    report = await check(studio, cassette, Other())
    assert told(report) == [
        ("Listen", "response"),
        ("Tell", "response.text"),
        ("Ask", "status.code"),
        ("Ask", "status.reason"),
        ("Tell", "status.code"),
        ("Tell", "status.reason"),
    ]
    rules = Rules(ignore=["Listen/response", "Tell/response", "Tell/status", "Ask/status"])
    lenient = Cassette(
        path=cassette.path,
        header=cassette.header.model_copy(update={"rules": rules}),
        calls=cassette.calls,
        complete=True,
        unfinished=[],
    )
    assert told(await check(studio, lenient, Other())) == []


async def test_an_id_that_never_came(studio: Studio) -> None:
    class Closed(Talk):
        async def Ask(self, note: Any, context: Any) -> Any:
            if note.text == "open":
                raise NotFoundError("no", reason="CLOSED")
            return await super().Ask(note, context)

    report = await check(studio, await record(studio), Closed())
    assert ("Ask", "status.code") in told(report)
    needing = [finding for finding in report.findings if finding.difference.path == "request"]
    assert [finding.call.number for finding in needing] == [2, 3, 4, 8]
    assert "a value of ${session_1}, got none: no answer has said it" in str(needing[0])


async def test_a_repeated_id_must_be_repeated(studio: Studio) -> None:
    """Idempotence shows: the same request id got the same session in the recording."""

    class Steady(Talk):
        def __init__(self, *, forgetful: bool) -> None:
            super().__init__(ids=uuid.uuid4().hex)
            self._by_request: dict[str, str] = {}
            self._forgetful = forgetful

        async def Ask(self, note: Any, context: Any) -> Any:
            answer = await super().Ask(note, context)
            if not self._forgetful:
                answer.session_id = self._by_request.setdefault(note.request_id, answer.session_id)
            return answer

    stub, _, finish = await studio.recording(Steady(forgetful=False))
    opening = Note(text="open", request_id=str(uuid.uuid4()))
    assert (await stub.Ask(opening)) == (await stub.Ask(opening))
    cassette = await finish()
    assert told(await check(studio, cassette, Steady(forgetful=False))) == []
    assert told(await check(studio, cassette, Steady(forgetful=True))) == [("Ask", "response.session_id")]


async def test_parameters_must_be_given(studio: Studio) -> None:
    parameters = {"name": ("recorded-name", "whose name to say")}
    stub, _, finish = await studio.recording(Talk(), parameters=parameters)
    await stub.Ask(Note(text="recorded-name"))
    cassette = await finish()
    with pytest.raises(InvalidArgumentError, match="name: the recording needs a value: whose name to say"):
        await check(studio, cassette, Talk())
    assert told(await check(studio, cassette, Talk(), parameters={"name": "mine"})) == []


async def test_what_the_adapter_does_not_declare_is_skipped(studio: Studio) -> None:
    cassette = await record(studio, requires=["talk.aloud"])
    report = await check(studio, cassette, Talk())
    assert (report.skipped, report.checked, report.ok) == ("the adapter does not declare talk.aloud", 0, True)
    assert (await check(studio, cassette, Talk(), capabilities=("talk.aloud", "talk.more"))).checked == 10


async def test_calls_that_overlapped_overlap_again(studio: Studio) -> None:
    """One that waits for another's effect would wait for ever if they were made one after the other."""

    class Waiting(Talk):
        def __init__(self) -> None:
            super().__init__()
            self.told = asyncio.Event()

        async def Ask(self, note: Any, context: Any) -> Any:
            if note.text == "wait":
                self.hung.set()
                await self.told.wait()
            if note.text == "tell":
                self.told.set()
            return Note(text="done")

    service = Waiting()
    stub, _, finish = await studio.recording(service)
    waiting = asyncio.ensure_future(stub.Ask(Note(text="wait")))
    await service.hung.wait()
    await stub.Ask(Note(text="tell"))
    await waiting
    assert told(await check(studio, await finish(), Waiting())) == []


async def test_the_command(studio: Studio) -> None:
    """Exit code 0 and a line; 1 and the differences; 2 for wrong usage."""

    class Forgetful(LocalBlobStore):
        async def DeleteBlob(self, request: Any, context: Any) -> Any:
            return blob_pb2.DeleteBlobResponse()

    def store(kind: type[blob_pb2_grpc.BlobStoreServiceServicer], name: str) -> Any:
        folder = studio.folder / name
        folder.mkdir()
        return kind(LocalBlobOptions(), AdapterContext(data_dir=folder))  # type: ignore[call-arg]

    recording = ROOT / "tests" / "stubs" / "blob" / "local.jsonl"

    async def run(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "crucible_kitchen.cli", "replay", "--check", str(recording), *arguments]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=100, cwd=ROOT)
        return done.returncode, done.stdout, done.stderr

    good, bad = store(LocalBlobStore, "good"), store(Forgetful, "bad")
    status, out, err = await run("--target", (await studio.serve(good, "blob")).address)
    assert (status, out) == (0, f"{recording}: 23 calls, 0 differences\n"), err
    status, out, _ = await run("--target", (await studio.serve(bad, "blob")).address, "--json")
    assert status == 1
    facts = json.loads(out)
    assert {each["method"].rpartition("/")[2] for each in facts["differences"]} == {"DeleteBlob", "ListBlobs"}
    status, _, err = await run()
    assert (status, "--check and --target go together" in err) == (2, True)
    for each in (good, bad):
        await each.close()
