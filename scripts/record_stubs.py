"""Records the stubs in tests/stubs from real adapters: the torch engine, the local blob store, and two small scripts.

    python scripts/record_stubs.py                     # all of them, in place of those that are there
    python scripts/record_stubs.py --only blob         # those of one port
    python scripts/record_stubs.py --out /tmp/stubs    # elsewhere

A recording is a conversation through the recording proxy; docs/recorded_stubs.md says what each one holds. The torch
ones take about a minute, and their numbers are those of the machine that recorded them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from stub_scenarios import blobs, chat, sample, stream_sample, train, training_errors
from stub_servicers import LLM_CAPABILITIES, SAMPLING_CAPABILITIES, ScriptedModel, ScriptedSampler

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible.port.training.v1 import training_pb2
from crucible_adapters.blob.local import LocalBlobOptions, LocalBlobStore
from crucible_adapters.builtin.weights import materialise
from crucible_kit.adapter import CONTRACT_VERSIONS, AdapterContext
from crucible_kit.cassettes.matching import Rules
from crucible_kit.cassettes.proxy import RecordingProxy
from crucible_kit.cassettes.writer import CassetteWriter
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.ports import PORTS
from crucible_kit.serving import serve_ports
from crucible_kit.training import TrainingSession

STUBS = Path(__file__).resolve().parents[1] / "tests" / "stubs"
MODEL = "tiny-qwen3-base"
CHECKPOINT = "stubs/to-sample-from"
# What a machine, a load or a build of torch decides.
TORCH_RULES = Rules(
    ignore=[
        "response.session.device",
        "response.session.lease",
        "response.lease",
        "response.**.metrics['*_seconds']",
        "response.checkpoint.base_model",
        "response.checkpoint.manifest_sha256",
        "response.checkpoint.files[*].sha256",
    ]
)
# The adapter's own configuration names the folder of its base model.
LORA_RULES = TORCH_RULES.extended(
    Rules(
        ignore=[
            "response.checkpoint.files[*].size_bytes",
            "ReadCheckpointFile/response.crc32",
            "ReadCheckpointFile/response.data",
        ]
    )
)
MODEL_PARAMETER = f"the model to train: builtin:{MODEL} on a kitchen, its folder on an engine"
CHECKPOINT_PARAMETER = (
    f"a checkpoint of builtin:{MODEL} with unchanged weights on the target, as SaveCheckpoint named it"
)

Scenario = Callable[[RemoteChannel], Awaitable[None]]


@asynccontextmanager
async def recorded(path: Path, target: str, work: Path, **details: Any) -> AsyncIterator[RemoteChannel]:
    """A channel through a recording proxy; the cassette is complete when the block ends."""
    proxy = RecordingProxy(CassetteWriter(path, **details), target)
    channel = connect(proxy.start(f"unix:{work}/proxy.sock"), retry=False)
    try:
        info = adapter_pb2.GetAdapterInfoRequest(host_version="0.1.0", host_contract_versions=CONTRACT_VERSIONS)
        await adapter_pb2_grpc.AdapterServiceStub(channel).GetAdapterInfo(info)
        yield channel
    finally:
        await channel.close()
        await asyncio.to_thread(proxy.stop)


@asynccontextmanager
async def torch_engine(work: Path) -> AsyncIterator[str]:
    """The engine as a process, on a socket; ends with the block."""
    address = f"unix:{work}/engine.sock"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crucible_adapters.torch_engine", "--listen", address),
        *("--work-dir", str(work / "checkpoints"), "--device", "cpu", "--threads", "1"),
    )
    channel = connect(address)
    try:
        await adapter_pb2_grpc.AdapterServiceStub(channel).Probe(adapter_pb2.ProbeRequest(), timeout=120)
        yield address
    finally:
        await channel.close()
        process.terminate()
        await process.wait()


async def save_checkpoint(address: str, model: str) -> str:
    """Address of a checkpoint with the model's own weights."""
    channel = connect(address)
    session = await TrainingSession.create(PORTS["training"].stub(channel), base_model=model, dtype="float32")
    saved = await session.save_checkpoint(CHECKPOINT, weights_only=True)
    await session.close()
    await channel.close()
    return saved.uri


async def record_torch(out: Path, work: Path, ports: set[str]) -> None:
    """The recordings of the torch engine."""
    model = str(materialise(MODEL, work / "model").path)
    lora = training_pb2.LoraConfig(rank=4)
    scenarios: dict[str, tuple[Scenario, tuple[str, ...]]] = {
        "full": (lambda channel: train(channel, model, None), ("training.checkpoint_files", "training.full")),
        "lora": (lambda channel: train(channel, model, lora), ("training.checkpoint_files", "training.lora")),
        "errors": (
            lambda channel: training_errors(channel, model),
            ("training.checkpoint_files", "training.lora"),
        ),
    }
    async with torch_engine(work) as address:
        for name, (scenario, requires) in scenarios.items():
            if "training" in ports:
                rules = LORA_RULES if name == "lora" else TORCH_RULES
                details = {"parameters": {"model": (model, MODEL_PARAMETER)}, "rules": rules}
                await record(out / "training" / f"{name}.jsonl", address, work, scenario, requires, **details)
        if "sampling" in ports:
            uri = await save_checkpoint(address, model)
            await record(
                out / "sampling" / "checkpoint.jsonl",
                address,
                work,
                lambda channel: sample(channel, uri),
                (),
                parameters={"checkpoint": (uri, CHECKPOINT_PARAMETER)},
                rules=TORCH_RULES,
            )


async def record_served(
    path: Path, work: Path, port: str, servicer: Any, scenario: Scenario, capabilities: tuple[str, ...], name: str
) -> None:
    """A recording of a servicer in this process."""
    served = await serve_ports(
        {port: servicer}, f"unix:{work}/{port}.sock", name=name, capabilities={port: capabilities}
    )
    await record(path, served.address, work, scenario, capabilities)
    await served.stop(0)


async def record(
    path: Path, target: str, work: Path, scenario: Scenario, requires: tuple[str, ...], **details: Any
) -> None:
    """One recording."""
    print(path, flush=True)
    async with recorded(path, target, work, requires=requires, **details) as channel:
        await scenario(channel)


async def record_all(out: Path, ports: set[str]) -> None:
    """The recordings of some ports, in place of those that are there."""
    for port in ports:
        shutil.rmtree(out / port, ignore_errors=True)
    # The folder's name is in some answers; the same one each time keeps the recordings alike.
    work = Path(tempfile.gettempdir()) / "crucible-stubs"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        if ports & {"training", "sampling"}:
            await record_torch(out, work, ports)
        if "sampling" in ports:
            await record_served(
                out / "sampling" / "stream.jsonl",
                work,
                "sampling",
                ScriptedSampler(),
                stream_sample,
                SAMPLING_CAPABILITIES,
                "scripted-sampler",
            )
        if "blob" in ports:
            store = LocalBlobStore(LocalBlobOptions(root=work / "blobs"), AdapterContext(data_dir=work))
            await record_served(out / "blob" / "local.jsonl", work, "blob", store, blobs, (), "local-blobs")
            await store.close()
        if "llm" in ports:
            model = ScriptedModel()
            await record_served(out / "llm" / "chat.jsonl", work, "llm", model, chat, LLM_CAPABILITIES, "scripted-llm")


PORTS_WITH_STUBS: Mapping[str, str] = {
    "training": "the torch engine: a full and a LoRA session, refusals",
    "sampling": "the torch engine on a checkpoint; a scripted stream",
    "blob": "the local blob store",
    "llm": "a scripted model",
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PORTS_WITH_STUBS), action="append", help="a port; repeatable")
    parser.add_argument("--out", type=Path, default=STUBS, help="folder of the stubs")
    arguments = parser.parse_args()
    asyncio.run(record_all(arguments.out, set(arguments.only or PORTS_WITH_STUBS)))


if __name__ == "__main__":
    main()
