"""kitchen adapter new: starters as it writes them, run unchanged."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible_kit.author import check_servicers
from crucible_kit.capabilities import capability_of
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.conformance.malformed import filled
from crucible_kit.errors import UnimplementedError
from crucible_kit.ports import PORTS, Port
from crucible_kit.serving import serve_ports
from crucible_kitchen.cli.starters import COMPLETE
from tests.cli.conftest import Kitchen
from tests.contract.processes import HAS_NODE, TYPESCRIPT, WHY_NOT_NODE

KITCHEN = Path(sys.executable).with_name("kitchen")
SKELETONS = {language: sorted(set(PORTS) - set(complete)) for language, complete in COMPLETE.items()}
needs_node = pytest.mark.skipif(not HAS_NODE, reason=WHY_NOT_NODE)

# Serves every starter from one process: folders by port on the command line, addresses on stdout.
SERVE_ALL = """
const addresses = {};
for (const [port, folder] of Object.entries(JSON.parse(process.argv[1]))) {
  const { serve } = await import(`${folder}/crucible/adapter.mjs`);
  const [Implementation] = Object.values(await import(`${folder}/adapter.mjs`));
  const listen = `unix:${process.argv[2]}/${port}`;
  addresses[port] = (await serve({ name: port, ports: { [port]: new Implementation() } }, listen)).address;
}
console.log(JSON.stringify(addresses));
process.stdin.once('end', () => process.exit(0)).resume();
"""


@pytest.fixture
def sockets() -> Iterator[Path]:
    """Short: a socket's path has at most 107 characters."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def new(kitchen: Kitchen, folder: Path, port: str, language: str, *words: str) -> Path:
    answer = kitchen("adapter", "new", "--port", port, "--language", language, *words, str(folder))
    assert answer.code == 0, answer.err
    if language == "typescript" and HAS_NODE:
        (folder / "node_modules").symlink_to(TYPESCRIPT / "node_modules")
    return folder


def run(*command: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    """What a command prints, which must end well."""
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_python_starters_pass_their_own_tests_which_are_the_suites(offline: Kitchen, tmp_path: Path) -> None:
    ports = [*COMPLETE["python"], "training"]
    tests = [str(new(offline, tmp_path / port, port, "python") / "test_adapter.py") for port in ports]
    plugins = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:xdist")
    out = run(
        sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", f"--rootdir={tmp_path}", *plugins, *tests,
        folder=tmp_path,
    )  # fmt: skip
    assert f"{len(ports)} passed" in out


def test_the_command_of_the_readme_passes_and_knows_what_memory_can_not(offline: Kitchen, tmp_path: Path) -> None:
    folder = new(offline, tmp_path / "my-blobs", "blob", "python")
    command = f"{sys.executable} {folder / 'adapter.py'}"
    words = ("conformance", "--port", "blob", "--exec", command, "--report", "json", "--only", "BLB")
    answer = offline(*words, "--known-failing", str(folder / "known_failing.txt"))
    report = json.loads(answer.out)
    assert answer.code == 0, answer.out
    assert report["adapter"].startswith("my-blobs ")
    failed = [each["id"] for each in report["results"] if each["verdict"] == "failed"]
    assert failed == ["BLB-RESTART-01"]


@needs_node
@pytest.mark.parametrize("port", COMPLETE["typescript"])
def test_typescript_starters_pass_their_own_tests_which_run_the_suites(
    offline: Kitchen, tmp_path: Path, port: str
) -> None:
    folder = new(offline, tmp_path / "mine", port, "typescript")
    out = run("node", "--test", folder=folder, environment={"KITCHEN": str(KITCHEN)})
    assert "# pass 2" in out and "# skipped 0" in out, out


async def check_skeleton(address: str, port: Port) -> None:
    """It shakes hands, and says of each method that it is missing."""
    channel = connect(address, retry=False)
    try:
        # What a caller's own checks would hold back, too, reaches the adapter.
        await check_methods(channel.unchecked(), port)
    finally:
        await channel.close()


async def check_methods(channel: RemoteChannel, port: Port) -> None:
    info = await adapter_pb2_grpc.AdapterServiceStub(channel).GetAdapterInfo(  # pyright: ignore[reportArgumentType]
        adapter_pb2.GetAdapterInfoRequest(host_contract_versions=[1])
    )
    assert [each.service for each in info.ports] == [port.service.full_name]
    for method in port.service.methods:
        with pytest.raises(UnimplementedError) as caught:
            await called(port.stub(channel), method)
        capability = capability_of(f"/{port.service.full_name}/{method.name}")
        assert caught.value.reason == ("CAPABILITY_MISSING" if capability else "METHOD_MISSING"), method.full_name


async def called(stub: Any, method: MethodDescriptor) -> None:
    request = filled(method.input_type)

    async def requests() -> AsyncIterator[Any]:
        yield request

    call = getattr(stub, method.name)(requests() if method.client_streaming else request, timeout=20)
    if method.server_streaming:
        async for _ in call:
            pass
    else:
        await call


async def test_python_skeletons_of_all_ports_serve(offline: Kitchen, tmp_path: Path, sockets: Path) -> None:
    for name in SKELETONS["python"]:
        port = PORTS[name]
        found = runpy.run_path(str(new(offline, tmp_path / name, name, "python") / "adapter.py"))
        [implementation] = [
            each for each in found.values() if isinstance(each, type) and issubclass(each, port.servicer)
        ]
        servicers = {name: implementation()}
        check_servicers(servicers)
        served = await serve_ports(servicers, f"unix:{sockets / name}", name=name, capabilities={name: ()})
        try:
            await check_skeleton(served.address, port)
        finally:
            await served.stop(0)


@needs_node
async def test_typescript_skeletons_of_all_ports_serve(offline: Kitchen, tmp_path: Path, sockets: Path) -> None:
    folders = {name: str(new(offline, tmp_path / name, name, "typescript")) for name in SKELETONS["typescript"]}
    process = await asyncio.create_subprocess_exec(
        *("node", "--input-type=module", "-e", SERVE_ALL, json.dumps(folders), str(sockets)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        addresses = json.loads(await process.stdout.readline())
        assert sorted(addresses) == SKELETONS["typescript"]
        for name, address in addresses.items():
            await check_skeleton(address, PORTS[name])
    finally:
        process.stdin.close()
        await process.wait()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--port", "rewards", "--language", "python", "x"), "'rewards' is not one of"),
        (("--port", "reward", "--language", "cobol", "x"), "'cobol' is not one of 'python', 'typescript'"),
        (("--port", "reward", "--language", "python"), "Missing argument 'DIR'"),
        (("--port", "reward", "--language", "python", "--name", "My Rewards", "x"), "such as my-reward"),
    ],
)
def test_what_it_can_not_write_is_refused(offline: Kitchen, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    answer = offline("adapter", "new", *words)
    assert answer.code == 2
    assert says in " ".join(answer.err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("language", sorted(COMPLETE))
def test_nothing_is_overwritten(offline: Kitchen, tmp_path: Path, language: str) -> None:
    (tmp_path / "adapter.py").write_text("mine")
    for folder, says in ((tmp_path, "is not empty"), (tmp_path / "adapter.py", "can't be written: File exists")):
        answer = offline("adapter", "new", "--port", "reward", "--language", language, str(folder))
        assert answer.code == 2
        assert says in " ".join(answer.err.split())
    assert [each.name for each in tmp_path.iterdir()] == ["adapter.py"]
    assert (tmp_path / "adapter.py").read_text() == "mine"


def test_the_name_is_the_folders_unless_it_is_given(offline: Kitchen, tmp_path: Path) -> None:
    for folder, words, name in (
        ("My Own_Rewards", (), "my-own_rewards"),
        ("ÄÖ", (), "my-reward"),
        ("x", ("--name", "grader"), "grader"),
    ):
        for language, file in (("python", "adapter.py"), ("typescript", "adapter.mjs")):
            made = new(offline, tmp_path / language / folder, "reward", language, *words)
            assert name in (made / file).read_text() and name in (made / "README.md").read_text()
            texts = [each.read_text() for each in made.glob("*") if each.is_file()]
            assert not [each for each in texts if "my-adapter" in each or "node-rewards" in each or "%{" in each]


def test_the_two_groups_name_each_other(offline: Kitchen) -> None:
    told = {group: " ".join(offline(group, "--help").out.split()) for group in ("adapter", "adapters")}
    assert "kitchen adapters" in told["adapter"]
    assert "kitchen adapter new" in told["adapters"]
    assert {"adapter", "adapters"} <= set(offline("--help").out.split())
