"""Checkpoints that are deleted after a time. A clock that the tests set stands for the engine's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible_adapters.torch_engine.checkpoint import Checkpoint, new_partial, publish, write_manifest
from crucible_adapters.torch_engine.checkpoint_store import CheckpointStore
from crucible_kit.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from tests.engine.test_service_checkpoints import load, read_all, upload_messages
from tests.engine.tiny import random_data
from tests.engine.wire import Wire, serve

SECOND = 10**9
START = 1_800_000_000 * SECOND
PROMPT = [5, 77, 12, 90]


class Clock:
    """Unix nanoseconds that move only when told."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def save(
    wire: Wire, session_id: str, sequence: int, name: str, ttl: duration_pb2.Duration | None
) -> tp.CheckpointResult:
    request = tp.SaveCheckpointRequest(session_id=session_id, sequence=sequence, name=name, ttl=ttl)
    operation = (await wire.training.SaveCheckpoint(request)).operation
    return (await wire.result(session_id, operation)).checkpoint


async def test_a_checkpoint_goes_after_its_time_unless_it_is_pinned(
    transport: Any, clock: Clock, tiny_folder: Path, tmp_path: Path
) -> None:
    ttl = duration_pb2.Duration(seconds=60, nanos=5)
    expires = START + 60 * SECOND + 5
    async with serve(tmp_path / "work", transport=transport) as (engine, wire):
        engine.store.clock = clock
        session_id = await wire.open(tiny_folder)
        await wire.train(session_id, 1, random_data([9]))
        saved = await save(wire, session_id, 3, "run-1/step-1", ttl)
        other = await save(wire, session_id, 4, "run-1/stays", None)
        assert saved.expire_time.ToNanoseconds() == expires
        assert not other.HasField("expire_time")
        # what is in it does not say how long it stays
        assert saved.manifest_sha256 == other.manifest_sha256
        assert (await load(wire, session_id, 5, saved.uri)).expire_time.ToNanoseconds() == expires

        sampling = await wire.open_sampling(checkpoint_uri=saved.uri)
        clock.now = expires - 1
        engine.store.delete_expired()
        before = await wire.score(sampling, 1, PROMPT)
        clock.now = expires
        engine.store.delete_expired()
        assert (await wire.score(sampling, 2, PROMPT)).tolist() == before.tolist()
        await load(wire, session_id, 6, saved.uri)

        await wire.sampling.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=sampling))
        engine.store.delete_expired()
        with pytest.raises(NotFoundError) as gone:
            await load(wire, session_id, 7, saved.uri)
        assert gone.value.reason == "CHECKPOINT_NOT_FOUND"
        with pytest.raises(NotFoundError):
            await wire.open_sampling(checkpoint_uri=saved.uri)
        await load(wire, session_id, 8, other.uri)
        # the name is free again, and its old time is forgotten
        again = await save(wire, session_id, 9, "run-1/step-1", None)
        clock.now *= 2
        engine.store.delete_expired()
        await load(wire, session_id, 10, again.uri)


async def test_times_survive_a_restart_and_an_upload_keeps(clock: Clock, tiny_folder: Path, tmp_path: Path) -> None:
    ttl = duration_pb2.Duration(seconds=60)
    async with serve(tmp_path / "work") as (engine, wire):
        engine.store.clock = clock
        session_id = await wire.open(tiny_folder)
        saved = await save(wire, session_id, 1, "short", ttl)
        uploaded = await save(wire, session_id, 2, "uploaded", ttl)
        files = await read_all(wire, uploaded)
    async with serve(tmp_path / "work") as (engine, wire):
        session_id = await wire.open(tiny_folder)
        assert await load(wire, session_id, 1, saved.uri, weights_only=True) == saved
        answer = (await wire.training.UploadCheckpoint(upload_messages("uploaded", files))).checkpoint
        assert not answer.HasField("expire_time")
    clock.now += 60 * SECOND
    CheckpointStore(tmp_path / "work" / "checkpoints", clock=clock)
    assert sorted(path.name for path in (tmp_path / "work" / "checkpoints").glob("*")) == [".expiry.json", "uploaded"]


@pytest.mark.parametrize(
    "ttl", [{}, {"seconds": -5}, {"nanos": -1}, {"seconds": 1, "nanos": -(10**9)}, {"seconds": 10**10}]
)
async def test_a_time_that_is_none_is_refused(wire: Wire, tiny_folder: Path, ttl: dict[str, int]) -> None:
    session_id = await wire.open(tiny_folder)
    with pytest.raises(InvalidArgumentError) as caught:
        await save(wire, session_id, 1, "one", duration_pb2.Duration(**ttl))
    assert caught.value.fields[0].field == "ttl"
    assert (await wire.info(session_id)).next_sequence == 1


def writer(content: str = "x") -> Callable[[Path], Checkpoint]:
    """Makes a checkpoint that holds nothing but a text."""

    def write(folder: Path) -> Checkpoint:
        partial = new_partial(folder)
        (partial / "content.txt").write_text(content)
        write_manifest(partial, base_model="", dtype="float32", optim_steps=0, weights_version=0)
        return publish(partial, folder)

    return write


def expire_time(store: CheckpointStore, checkpoint: Checkpoint) -> int | None:
    result = store.describe(checkpoint)
    return (result.expire_time.ToNanoseconds() - START) // SECOND if result.HasField("expire_time") else None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(10, 20, 25), (20, 10, 20), (10, None, None), (None, 10, None), (None, None, None)],
)
def test_saving_the_same_again_keeps_it_for_the_longer_time(
    tmp_path: Path, clock: Clock, first: int | None, second: int | None, expected: int | None
) -> None:
    store = CheckpointStore(tmp_path / "root", clock=clock)
    store.save("a/b", writer(), first and first * SECOND)
    clock.now += 5 * SECOND
    saved = store.save("a/b", writer(), second and second * SECOND)
    assert expire_time(store, saved) == expected
    assert expire_time(CheckpointStore(tmp_path / "root", clock=clock), saved) == expected


def test_a_save_that_is_refused_changes_no_time(tmp_path: Path, clock: Clock) -> None:
    store = CheckpointStore(tmp_path, clock=clock)
    saved = store.save("a", writer(), 10 * SECOND)
    with pytest.raises(AlreadyExistsError):
        store.save("a", writer("other"), None)
    assert expire_time(store, saved) == 10


def test_a_save_that_fails_leaves_no_time_for_the_next_of_its_name(tmp_path: Path, clock: Clock) -> None:
    def fail(folder: Path) -> Checkpoint:
        # a crash here would leave the time and no folder, which the next start forgets
        assert json.loads((tmp_path / ".expiry.json").read_bytes()) == {"a": START + 10 * SECOND}
        raise OSError("full")

    store = CheckpointStore(tmp_path, clock=clock)
    with pytest.raises(OSError, match="full"):
        store.save("a", fail, 10 * SECOND)
    assert json.loads((tmp_path / ".expiry.json").read_bytes()) == {}


def test_what_is_saved_again_when_its_time_has_come_stays(tmp_path: Path, clock: Clock) -> None:
    store = CheckpointStore(tmp_path, clock=clock)
    store.save("a", writer(), 10 * SECOND)
    clock.now += 10 * SECOND

    def write(folder: Path) -> Checkpoint:
        store.delete_expired()
        with pytest.raises(FailedPreconditionError):
            store.delete("torch-engine:a")
        return writer()(folder)

    saved = store.save("a", write, 10 * SECOND)
    store.delete_expired()
    assert expire_time(store, saved) == 20
    assert (tmp_path / "a" / "content.txt").exists()


@pytest.mark.parametrize(
    "damage", [b"", b"[1]", b'{"a": "soon"}', b'{"../outside": 1}', b'{"/outside": 1}', b'{"": 1}', b"\xff"]
)
def test_a_damaged_index_deletes_nothing(tmp_path: Path, clock: Clock, damage: bytes) -> None:
    root = tmp_path / "root"
    store = CheckpointStore(root, clock=clock)
    store.save("a", writer(), 10 * SECOND)
    CheckpointStore(tmp_path, clock=clock).save("outside", writer(), None)
    (root / ".expiry.json").write_bytes(damage)
    clock.now += 20 * SECOND
    again = CheckpointStore(root, clock=clock)
    assert again.find("torch-engine:a").is_dir()
    assert (tmp_path / "outside").is_dir()
    assert expire_time(again, again.save("b", writer(), SECOND)) == 21


def test_a_start_removes_what_a_crash_left(tmp_path: Path, clock: Clock) -> None:
    store = CheckpointStore(tmp_path, clock=clock)
    store.save("kept", writer(), 100 * SECOND)
    store.save("lost", writer(), 100 * SECOND)
    (tmp_path / "lost").rename(tmp_path / ".partial-1")
    (tmp_path / "..expiry.json.abc").write_text("half")
    again = CheckpointStore(tmp_path, clock=clock)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".expiry.json", "kept"]
    assert json.loads((tmp_path / ".expiry.json").read_bytes()) == {"kept": START + 100 * SECOND}
    # a new checkpoint of the lost one's name has nothing to do with its time
    assert expire_time(again, again.save("lost", writer(), None)) is None
