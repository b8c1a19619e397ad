"""AddAdapter and RemoveAdapter of a whole server: what they change, what they refuse, what a restart keeps."""

from __future__ import annotations

import asyncio
import hashlib
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from crucible.kitchen.v1 import adapter_admin_pb2, event_pb2
from crucible.port.blob.v1 import blob_pb2
from crucible.port.dataset.v1 import dataset_pb2
from crucible_client import KitchenClient
from crucible_kit.errors import KitchenError, NotFoundError
from crucible_kitchen.administration import AdapterAdministration
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.ports import manifest as manifest_module
from crucible_kitchen.ports.added import FILE
from crucible_kitchen.ports.mapping import PortMapping
from crucible_kitchen.server import KitchenServer
from tests.contract.tokenizer_folders import make_folder
from tests.server.gated import MANIFEST, UNGATED, GatedTraining
from tests.server.test_host import PROGRAM, configured, lines
from tests.workflow.kitchen import write_rows

DEFAULT, FROM_MANIFEST, ADDED = (
    adapter_admin_pb2.ADAPTER_SOURCE_DEFAULT,
    adapter_admin_pb2.ADAPTER_SOURCE_MANIFEST,
    adapter_admin_pb2.ADAPTER_SOURCE_ADDED,
)
Serving = Callable[..., Any]


@pytest.fixture
def serving(tmp_path: Path, sockets: Path) -> Serving:
    """A server on the test's data folder for the length of a block, as a client of it."""

    @asynccontextmanager
    async def start(manifest: str = "profile: local\n", listen: str = "") -> AsyncIterator[KitchenClient]:
        path = tmp_path / "kitchen.yaml"
        path.write_text(manifest)
        listen = listen or f"unix:{sockets / 's'}"
        server = KitchenServer(ServerOptions(listen=listen, data=tmp_path / "data", manifest=path, drain_seconds=0))
        await server.start()
        try:
            async with KitchenClient.connect(server.address) as kitchen:
                yield kitchen
        finally:
            await server.stop()

    return start


@pytest.fixture
def sockets() -> Iterator[Path]:
    """Short: a socket's path has at most 107 characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


async def refusal(call: Any) -> tuple[str, str]:
    """Code and reason of a call that must fail."""
    with pytest.raises(KitchenError) as caught:
        await call
    return caught.value.code.name, caught.value.reason


async def adapter(kitchen: KitchenClient, port: str) -> adapter_admin_pb2.Adapter:
    return next(each for each in await kitchen.list_adapters() if each.port == port)


def program(folder: Path, *words: str) -> list[str]:
    return [sys.executable, str(PROGRAM), str(folder), *words]


async def keys(kitchen: KitchenClient) -> list[str]:
    return [each.key for each in (await kitchen.port("blob").ListBlobs(blob_pb2.ListBlobsRequest())).blobs]


async def write(kitchen: KitchenClient, key: str) -> None:
    async def requests() -> AsyncIterator[blob_pb2.WriteBlobRequest]:
        yield blob_pb2.WriteBlobRequest(header=blob_pb2.WriteBlobHeader(key=key))
        finish = blob_pb2.WriteBlobFinish(size_bytes=0, sha256=hashlib.sha256().hexdigest())
        yield blob_pb2.WriteBlobRequest(finish=finish)

    await kitchen.port("blob").WriteBlob(requests())


async def test_an_added_adapter_counts_at_once_and_after_a_restart_and_can_be_taken_back(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROGRAM_KEY", "sk-of-the-program-0123456789")
    mapping: dict[str, Any] = {
        "command": program(tmp_path / "program"),
        "options": {"size": 2},
        "secrets": {"api_key": "PROGRAM_KEY"},
        "wait_seconds": 60.0,
    }
    saved = tmp_path / "data" / FILE
    async with serving() as kitchen:
        await write(kitchen, "mine")
        assert (await adapter(kitchen, "blob")).source == DEFAULT
        checked = await kitchen.add_adapter("blob", **mapping, validate_only=True)
        assert checked is not None and checked.target == "builtin:local" and not saved.exists()
        assert lines(tmp_path / "program", "pids") == []
        added = await kitchen.add_adapter("blob", **mapping)
        assert added is not None
        assert (added.source, added.state) == (ADDED, adapter_admin_pb2.ADAPTER_STATE_READY)
        assert added.target == f"exec:{shlex.join(mapping['command'])}"
        assert dict(added.options.items()) == {"size": 2}
        assert await keys(kitchen) == []
        await write(kitchen, "its")
        # The same once more changes nothing.
        assert await kitchen.add_adapter("blob", **mapping) == added
        assert len(lines(tmp_path / "program", "pids")) == len(configured(tmp_path / "program")) == 1
        text = saved.read_text()
        assert "PROGRAM_KEY" in text and "sk-of" not in text
        assert saved.stat().st_mode & 0o777 == 0o600
    async with serving() as kitchen:
        assert (await adapter(kitchen, "blob")).source == ADDED
        assert await keys(kitchen) == ["its"]
        back = await kitchen.remove_adapter("blob")
        assert back is not None and (back.target, back.source) == ("builtin:local", DEFAULT)
        assert await keys(kitchen) == ["mine"]
        assert await refusal(kitchen.remove_adapter("blob")) == ("NOT_FOUND", "MAPPING_NOT_FOUND")
    assert yaml.safe_load(saved.read_text()) == {"ports": {}}
    async with serving("profile: local\nports: {metrics: 'builtin:sqlite'}") as kitchen:
        sources = {each.port: each.source for each in await kitchen.list_adapters()}
        assert sources["metrics"] == FROM_MANIFEST and sources["blob"] == DEFAULT


@pytest.mark.parametrize(
    "mapping",
    [
        {"adapter": "exec:cat"},
        {"adapter": "python:os:PathLike"},
        {"adapter": "builtin:local", "options": {"root": "/"}},
        {"adapter": "grpc:127.0.0.1:1", "secrets": {"key": "PATH"}},
        {"adapter": "grpc:127.0.0.1:1", "token_env": "PATH"},
    ],
)
async def test_who_is_not_known_runs_no_programs_and_gets_no_secrets(serving: Serving, mapping: dict[str, Any]) -> None:
    async with serving(listen="127.0.0.1:0") as kitchen:
        assert await refusal(kitchen.add_adapter("blob", **mapping)) == ("PERMISSION_DENIED", "CALLERS_UNKNOWN")
        assert (await adapter(kitchen, "blob")).source == DEFAULT


async def test_a_port_can_go_back_to_none(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    without = {port: each for port, each in manifest_module._DEFAULT_PORTS.items() if port != "blob"}
    monkeypatch.setattr(manifest_module, "_DEFAULT_PORTS", without)
    async with serving() as kitchen:
        assert await refusal(keys(kitchen)) == ("FAILED_PRECONDITION", "PORT_NOT_MAPPED")
        assert await refusal(kitchen.probe_adapter("blob")) == ("FAILED_PRECONDITION", "PORT_NOT_MAPPED")
        added = await kitchen.add_adapter("blob", "builtin:local")
        assert added is not None and added.source == ADDED
        assert await keys(kitchen) == []
        assert await kitchen.remove_adapter("blob") is None
        assert "blob" not in [each.port for each in await kitchen.list_adapters()]
        assert await refusal(keys(kitchen)) == ("FAILED_PRECONDITION", "PORT_NOT_MAPPED")


async def test_an_adapter_s_own_refusal_at_the_start_names_its_mapping(serving: Serving, tmp_path: Path) -> None:
    missing = "{adapter: 'builtin:workers', options: {manifests: ['/missing.yaml']}}"
    with pytest.raises(KitchenError, match=r"^manifest\.ports\.python_bridge: options\.manifests: /missing\.yaml"):
        async with serving(f"profile: local\nports: {{python_bridge: {missing}}}"):
            pass
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / FILE).write_text(f"ports: {{python_bridge: {missing}}}")
    with pytest.raises(KitchenError, match=rf"^{FILE} ports\.python_bridge: "):
        async with serving():
            pass


async def test_what_is_refused_changes_nothing(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    invalid, broken = ("INVALID_ARGUMENT", "MANIFEST_INVALID"), tmp_path / "data" / FILE
    async with serving() as kitchen:
        before = await kitchen.list_adapters()
        for given in (
            {"adapter": "builtin:nothing"},
            {"adapter": "builtin:local", "options": {"rot": "/"}},
            {"adapter": "builtin:fake_blob"},
            {"adapter": "python:tests.fault.fake_child:FAKE_ENGINE"},
            {"adapter": "grpc:10.0.0.1:1"},
            {"adapter": "grpc:10.0.0.1:1", "tls": {"ca": "relative.pem"}},
            {"adapter": "grpc:10.0.0.1:1", "tls": {"ca": "/missing.pem"}},
            {"adapter": "grpc:unix:/s", "secrets": {"api_key": "NO_KEY"}},
            {"adapter": "grpc:unix:/s", "wait_seconds": -1.0},
            {"adapter": "exec:no-such-program"},
            {"command": program(tmp_path / "program", "settled"), "options": {"a": 1}},
            {},
        ):
            for validate_only in (True, False):
                if validate_only and "settled" in given.get("command", ()):
                    continue  # nobody asks the program
                call = kitchen.add_adapter("blob", **given, validate_only=validate_only)
                assert await refusal(call) == invalid, given
        with pytest.raises(KitchenError, match=r"(?s)ended with status 3.*no licence found") as caught:
            await kitchen.add_adapter("blob", command=program(tmp_path / "dead", "dies"))
        assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "ADAPTER_UNAVAILABLE")
        mapped = kitchen.add_adapter("hub", command=program(tmp_path / "program"))
        assert await refusal(mapped) == ("FAILED_PRECONDITION", "PORT_NOT_SERVED")
        assert await refusal(kitchen.add_adapter("blubb", "builtin:local")) == ("NOT_FOUND", "PORT_NOT_FOUND")
        assert await refusal(kitchen.remove_adapter("blubb")) == ("NOT_FOUND", "PORT_NOT_FOUND")
        broken.mkdir()  # nothing can take its place
        assert await refusal(kitchen.add_adapter("blob", "builtin:local", options={"root": str(tmp_path / "b")})) == (
            "FAILED_PRECONDITION",
            "DATA_FOLDER_UNUSABLE",
        )
        broken.rmdir()
        assert await kitchen.list_adapters() == before
        # The programs that were asked have ended.
        assert sorted(lines(tmp_path / "program", "ended")) == sorted(lines(tmp_path / "program", "pids"))
    assert not broken.exists()


async def test_an_adapter_that_is_away_is_mapped_and_said_to_be(serving: Serving, tmp_path: Path) -> None:
    async with serving() as kitchen:
        added = await kitchen.add_adapter("blob", f"grpc:unix:{tmp_path}/none", wait_seconds=0.5)
        assert added is not None
        assert (added.state, added.source) == (adapter_admin_pb2.ADAPTER_STATE_DEGRADED, ADDED)
        assert added.last_error.startswith("ADAPTER_UNAVAILABLE: grpc:unix:")
        assert await refusal(keys(kitchen)) == ("UNAVAILABLE", "ADAPTER_UNAVAILABLE")


class SlowPorts:
    """Ports whose change waits for a gate."""

    def __init__(self) -> None:
        self.began, self.gate, self.mapped = asyncio.Event(), asyncio.Event(), False

    def mapping(self, port: str) -> None:
        return None

    async def check(self, port: str, mapping: PortMapping, *, where: str) -> None: ...

    async def add(self, port: str, mapping: PortMapping, **_: Any) -> None:
        self.began.set()
        await self.gate.wait()
        self.mapped = True


async def test_a_change_is_finished_when_its_caller_hangs_up() -> None:
    async def nobody(port: str) -> list[str]:
        return []

    ports: Any = SlowPorts()
    administration = AdapterAdministration(ports, nobody, knows_callers=True)
    mapping = PortMapping(adapter="builtin:local")
    adding = administration.add("blob", mapping, where="mapping", validate_only=False, force=False)
    caller = asyncio.create_task(adding)
    await ports.began.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    ports.gate.set()
    await administration.close()
    assert ports.mapped


async def test_open_sessions_of_clients_keep_their_adapter(serving: Serving, tmp_path: Path) -> None:
    source = dataset_pb2.DatasetSource(uri="builtin:word-problems")
    other = {"command": program(tmp_path / "program")}
    async with serving() as kitchen:
        datasets = kitchen.port("dataset")
        opened = (await datasets.OpenDataset(dataset_pb2.OpenDatasetRequest(source=source))).dataset.dataset_id
        replacing = kitchen.add_adapter("dataset", "builtin:huggingface")
        assert await refusal(replacing) == ("FAILED_PRECONDITION", "ADAPTER_IN_USE")
        await kitchen.add_adapter("blob", **other)  # nobody has sessions there
        await datasets.CloseDataset(dataset_pb2.CloseDatasetRequest(dataset_id=opened))
        added = await kitchen.add_adapter("dataset", "builtin:huggingface")
        assert added is not None and added.target == "builtin:huggingface"
        opened = (await datasets.OpenDataset(dataset_pb2.OpenDatasetRequest(source=source))).dataset.dataset_id
        assert await refusal(kitchen.remove_adapter("dataset")) == ("FAILED_PRECONDITION", "ADAPTER_IN_USE")
        await kitchen.remove_adapter("dataset", force=True)
        with pytest.raises(NotFoundError) as caught:
            await datasets.GetDatasetInfo(dataset_pb2.GetDatasetInfoRequest(dataset_id=opened))
        assert caught.value.reason == "DATASET_NOT_FOUND"


async def test_a_run_at_work_keeps_its_adapters_unless_it_is_forced(serving: Serving, tmp_path: Path) -> None:
    config = {
        "model": str(make_folder(tmp_path / "model")),
        "dataset": str(write_rows(tmp_path / "rows.jsonl", 24)),
        "batch_size": 4,
        "max_length": 64,
        "lora_rank": 8,
    }
    async with serving(MANIFEST) as kitchen:
        run = await kitchen.create_run("sl_basic", config=config, run_id="at-work")
        await GatedTraining.reached.wait()
        for port in ("training", "blob", "metrics", "tokenizer"):
            with pytest.raises(KitchenError, match="in use by run at-work") as caught:
                await kitchen.add_adapter(port, UNGATED if port == "training" else "builtin:fake_nothing")
            assert caught.value.reason == "ADAPTER_IN_USE"
        added = await kitchen.add_adapter("training", UNGATED, force=True)
        assert added is not None and added.target == UNGATED
        GatedTraining.gate.set()
        ended = await kitchen.wait(run.run_id)
        assert (ended.state, ended.attempt) == (event_pb2.RUN_STATE_COMPLETED, 2), ended.failure
        await kitchen.remove_adapter("training")  # nobody is at work any more
