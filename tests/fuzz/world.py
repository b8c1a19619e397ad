"""What the server under test knows: ids, addresses and numbers that requests refer to, learned from its answers."""

from __future__ import annotations

import os
import shutil
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from crucible.port.training.v1 import training_pb2 as tp
from tests.fuzz.calls import Call, Method
from tests.fuzz.wire import Ref

_KEPT = 4
_ENQUEUE = ("Forward", "ForwardBackward", "OptimStep", "SaveCheckpoint", "LoadCheckpoint", "Sample", "ComputeLogprobs")
_SESSION_SERVICES = {"TrainingService": "training", "SamplingService": "sampling"}


class World:
    """Values by pool, the newest first; a pool that is empty gives a name that nothing has.

    Attributes:
        statics: values that stay.
        evicted: (pool, id) of what the calls opened and this world forgets: somebody should close it.
        dirty: sessions whose next number is not known any more.
    """

    def __init__(self) -> None:
        self.statics: dict[str, list[int | bytes]] = {}
        self.pools: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self.next_sequence: dict[str, int] = {}
        self.evicted: list[tuple[str, str]] = []
        self.dirty: set[str] = set()
        self._operations: dict[str, str] = {}
        self._fresh = 0

    def resolve(self, ref: Ref) -> int | bytes:
        """The value of a reference now."""
        kind, index = ref.kind, ref.index
        if kind.startswith("fresh_"):
            self._fresh += 1
            return self._new(kind).encode()
        if kind == "late_sequence":
            return self._sequence("training", index) + 3
        if kind.endswith("_sequence"):
            return self._sequence(kind.removesuffix("_sequence"), index)
        if kind.endswith("_operation"):
            return self._operations.get(self._session(kind.removesuffix("_operation"), index), "no-such").encode()
        if kind in self.statics:
            known = self.statics[kind]
            return known[index % len(known)]
        pool = self.pools.get(kind)
        return pool[index % len(pool)].encode() if pool else b"no-such-" + kind.encode()

    def _new(self, kind: str) -> str:
        match kind:
            case "fresh_uuid":
                return str(uuid.uuid5(uuid.NAMESPACE_OID, f"fresh-{self._fresh}"))
            case "fresh_client_run":
                return f"clients/r{self._fresh}"
            case _:
                return f"fuzz-{self._fresh}"

    def _session(self, port: str, index: int) -> str:
        sessions = self.pools.get(f"{port}_session")
        return sessions[index % len(sessions)] if sessions else ""

    def _sequence(self, port: str, index: int) -> int:
        return self.next_sequence.get(self._session(port, index), 1)

    def accepted(self, session_id: str, sequence: int, operation_id: str) -> None:
        """A session has taken a call."""
        self.next_sequence[session_id] = max(self.next_sequence.get(session_id, 1), sequence + 1)
        self._operations[session_id] = operation_id

    def add(self, pool: str, value: str) -> None:
        """A new value of a pool; the oldest gives way."""
        values = self.pools[pool]
        if not value or value in values:
            return
        if len(values) == _KEPT:
            self.evicted.append((pool, values[-1]))
        values.appendleft(value)

    def remove(self, pool: str, value: str) -> None:
        """Forgets a value."""
        if value in self.pools[pool]:
            self.pools[pool].remove(value)

    def take_evicted(self, pool: str) -> list[str]:
        """What a pool has given up since it was last asked."""
        taken = [value for name, value in self.evicted if name == pool]
        self.evicted = [each for each in self.evicted if each[0] != pool]
        return taken

    # Learning from answers

    def learn(self, call: Call, requests: list[bytes], responses: list[bytes]) -> None:
        """Takes in what a call that succeeded has told."""
        method = call.method
        request, response = _parsed(method.request, requests), _parsed(method.response, responses)
        if request is None or response is None:
            return
        service = method.path.split("/")[1].rpartition(".")[2]
        port = _SESSION_SERVICES.get(service)
        if port is not None:
            self._learn_session(port, method, request, response)
        learn = _LEARN.get(method.name)
        if learn is not None:
            learn(self, request, response)
        if "next_page_token" in response.DESCRIPTOR.fields_by_name:
            self.add(f"{method.name}_page_token", response.next_page_token)

    def _learn_session(self, port: str, method: Method, request: Any, response: Any) -> None:
        pool = f"{port}_session"
        if method.name in _ENQUEUE:
            self.accepted(request.session_id, response.operation.sequence, response.operation.id)
        elif method.name.startswith("Create"):
            session_id = response.session.session_id if port == "training" else response.session_id
            self.add(pool, session_id)
        elif method.name.startswith("Close"):
            self.remove(pool, request.session_id)
        elif method.name == "AwaitOperation" and port == "training" and response.HasField("checkpoint"):
            self.add("spare_checkpoint", response.checkpoint.uri)

    def unsure(self, call: Call, requests: list[bytes]) -> None:
        """A call that may have been accepted all the same: its session's numbers must be asked for."""
        if call.method.name in _ENQUEUE and "TrainingService" in call.method.path:
            request = _parsed(call.method.request, requests)
            if request is not None:
                self.dirty.add(request.session_id)


def _parsed(descriptor: Any, frames: list[bytes]) -> Any:
    if descriptor is None or not frames:
        return None
    try:
        return GetMessageClass(descriptor).FromString(frames[0])
    except DecodeError:
        return None


def _forget_checkpoint(world: World, request: Any, response: Any) -> None:
    world.remove("spare_checkpoint", request.uri)
    world.remove("checkpoint", request.uri)


_LEARN: dict[str, Callable[[World, Any, Any], None]] = {
    "CreateRun": lambda world, request, response: (
        None if request.validate_only else world.add("run", response.run.run_id)
    ),
    "OpenDataset": lambda world, request, response: world.add("dataset", response.dataset.dataset_id),
    "CloseDataset": lambda world, request, response: world.remove("dataset", request.dataset_id),
    "RegisterVersion": lambda world, request, response: world.add("version", response.version.version_id),
    "WriteBlob": lambda world, request, response: world.add("blob", request.header.key),
    "DeleteBlob": lambda world, request, response: world.remove("blob", request.key),
    "DeleteCheckpoint": _forget_checkpoint,
}


def odd_files(folder: Path, rows: str) -> dict[str, list[int | bytes]]:
    """Files and folders that programs stumble over; the statics that name them."""
    folder.mkdir()
    plain, odd = folder / "plain", folder / "odd"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    (plain / "a.txt").write_text("text")
    odd.mkdir()
    (odd / "empty").touch()
    (odd / "config.json").write_text('{"model_type": [')
    with open(os.fsencode(odd) + b"/\xff\xfe name", "wb") as file:  # a name that is not UTF-8
        file.write(b"x")
    (odd / "dangling").symlink_to(odd / "nothing")
    (odd / "loop").symlink_to(odd / "loop")
    os.mkfifo(odd / "fifo")
    (folder / "rows.jsonl").write_text(rows)
    (folder / "deep.jsonl").write_text('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    (folder / "binary.parquet").write_bytes(b"PAR1" + bytes(range(256)) * 8 + b"PAR1")
    return {
        "folder": [str(plain).encode(), str(odd).encode()],
        "odd_folder": [str(odd).encode(), str(folder).encode()],
        "fifo": [str(odd / "fifo").encode()],
        "loop": [str(odd / "loop").encode(), str(odd / "dangling").encode()],
        "rows_file": [
            str(folder / "rows.jsonl").encode(),
            str(folder / "deep.jsonl").encode(),
            str(folder / "binary.parquet").encode(),
        ],
    }


def footprint(folders: Iterable[Path]) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below the folders. Shared memory of SQLite's readers does not count."""
    found: dict[str, tuple[int, int]] = {}
    stack = [str(folder) for folder in folders]
    while stack:
        try:
            entries = list(os.scandir(stack.pop()))
        except FileNotFoundError:
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif not entry.name.endswith("-shm"):
                    status = entry.stat(follow_symlinks=False)
                    found[entry.path] = (status.st_size, status.st_mtime_ns)
            except FileNotFoundError:
                continue
    return found


def upload_frames(files: list[tuple[str, bytes]], name: str, *, at_least: int) -> list[int | bytes]:
    """The frames of an UploadCheckpoint of files, and empty chunks up to `at_least`."""
    import zlib
    from hashlib import sha256

    header = tp.UploadCheckpointHeader(name=name)
    frames: list[int | bytes] = []
    for index, (path, data) in enumerate(files):
        header.files.add(path=path, size_bytes=len(data), sha256=sha256(data).hexdigest())
        for offset in range(0, len(data), 256 * 1024):
            piece = data[offset : offset + 256 * 1024]
            chunk = tp.UploadCheckpointChunk(file_index=index, offset=offset, crc32=zlib.crc32(piece), data=piece)
            frames.append(tp.UploadCheckpointRequest(chunk=chunk).SerializeToString())
    frames.insert(0, tp.UploadCheckpointRequest(header=header).SerializeToString())
    while len(frames) < at_least:
        last = tp.UploadCheckpointChunk(file_index=len(files) - 1, offset=len(files[-1][1]))
        frames.append(tp.UploadCheckpointRequest(chunk=last).SerializeToString())
    return frames


def remove_tree(folder: Path) -> None:
    """Removes a folder."""
    shutil.rmtree(folder, ignore_errors=True)
