"""What a user with a network types, with a hub on this machine instead; and that nothing of it is loaded before."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from crucible_adapters.builtin import weights as builtin_models
from crucible_adapters.builtin import word_problems
from crucible_client import KitchenClient
from crucible_kit.errors import InvalidArgumentError, KitchenError
from crucible_kitchen.ports import manifest
from crucible_kitchen.ports.manifest import load_manifest
from tests.contract.refusals import refused
from tests.hub.conftest import jsonl
from tests.hub.fake_hub import FakeHub
from tests.system.harness import serving

MODEL, DATASET = "Qwen/Qwen3-tiny", "team/word-problems"
CARD = b"""---
configs:
- config_name: main
  data_files:
  - {split: train, path: train.jsonl}
  - {split: test, path: test.jsonl}
- config_name: other
  data_files: other.jsonl
---
"""
SETTINGS = {
    "model": MODEL,
    "dataset": DATASET,
    "dataset_config": "main",
    "eval_dataset": f"{DATASET}#test",
    "lora_rank": 0,
    "batch_size": 4,
    "max_length": 96,
    "max_steps": 3,
    "sample_max_tokens": 4,
}


def write_manifest(folder: Path, hub: FakeHub) -> Path:
    ports = {port: {"adapter": "builtin:huggingface", "options": {"endpoint": hub.url}} for port in ("hub", "dataset")}
    path = folder / "kitchen.yaml"
    path.write_text(yaml.safe_dump({"ports": ports}))
    return path


@pytest.fixture
def filled(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """A hub with a small model and a small dataset."""
    folder = tmp_path / "model"
    builtin_models.materialise("tiny-qwen3", folder)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.add("models", MODEL, {**files, "pytorch_model.bin": b"\0" * 1000, "original/params.json": b"{}"})
    rows = {name: jsonl(word_problems.generate(n, seed)) for name, n, seed in (("train", 16, 3), ("test", 6, 4))}
    hub.add(
        "datasets",
        DATASET,
        {"README.md": CARD, "train.jsonl": rows["train"], "test.jsonl": rows["test"], "other.jsonl": rows["test"]},
    )
    return hub


def test_a_run_takes_its_model_and_its_rows_from_the_hub(filled: FakeHub, tmp_path: Path) -> None:
    words = ["run", "sl_basic", "--json", "--data", str(tmp_path / "data")]
    words += ["--manifest", str(write_manifest(tmp_path, filled))]
    words += [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    # Whoever asks for another host asks here.
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), address)
        done = subprocess.run(
            [sys.executable, "-m", "crucible_kitchen.cli", *words],
            capture_output=True,
            text=True,
            timeout=110,
            env={**os.environ, **proxies, "NO_PROXY": "127.0.0.1,localhost", "HF_HOME": str(tmp_path / "hf")},
            check=False,
        )
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert done.returncode == 0, done.stderr
    *events, run = map(json.loads, done.stdout.splitlines())
    assert (run["state"], run["step"]) == ("RUN_STATE_COMPLETED", "3")
    assert next(each["planned"]["num_rows"] for each in events if "planned" in each) == "16"
    # The submission asks what is there; only the run brings files, and only those that it needs.
    asked = [f"{each.method} {each.path}" for each in filled.requests]
    submitted = next(number for number, each in enumerate(asked) if each.startswith(f"GET /api/models/{MODEL}?"))
    assert not [each for each in asked[:submitted] if each.startswith("GET") and "jsonl" in each]
    assert len([each for each in asked[submitted:] if each.startswith("GET") and "jsonl" in each]) == 2
    assert filled.asked("bin|original|other.jsonl") == []
    assert len(filled.asked("GET /storage")) == 1
    model = AutoModelForCausalLM.from_pretrained(run["latest_checkpoint"]["uri"].removeprefix("file://"))
    assert model.config.model_type == "qwen3"


async def test_a_submission_names_the_key_and_brings_nothing(
    filled: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.add("models", "meta/gated", {"model.safetensors": b"x"}, gated=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    no_rows = {"dataset": "builtin:word-problems", "dataset_config": "", "eval_dataset": ""}
    with serving(tmp_path / "data", "--manifest", str(write_manifest(tmp_path, filled))) as server:
        async with KitchenClient.connect(server.address) as client:

            async def refusal(**settings: object) -> tuple[str, str, str]:
                with pytest.raises(KitchenError) as caught:
                    await client.create_run("sl_basic", config={**SETTINGS, **settings})
                error = caught.value
                return error.code.name, error.reason, error.message.partition(":")[0]

            answers = await asyncio.gather(
                refusal(**no_rows, model="Qwen/Qwen4"),
                refusal(**no_rows, model="meta/gated"),
                refusal(dataset="team/nothing", eval_dataset=""),
                refusal(dataset_config="", eval_dataset=""),
            )
    assert answers == [
        ("INVALID_ARGUMENT", "MODEL_NOT_FOUND", "config.model"),
        ("INVALID_ARGUMENT", "REPO_ACCESS_DENIED", "config.model"),
        ("INVALID_ARGUMENT", "DATASET_NOT_FOUND", "config.dataset"),
        ("INVALID_ARGUMENT", "FIELD_INVALID", "config.dataset_config"),
    ]
    assert filled.asked("GET .*(safetensors|storage|jsonl)") == []


# What a server whose manifest is the default needs none of in its own process. Not all of them need be installed.
LIBRARIES = (
    *(
        "anthropic",
        "chromadb",
        "datasets",
        "fsspec",
        "google.cloud.storage",
        "google.genai",
        "httpx2",
        "huggingface_hub",
        "math_verify",
        "mlflow",
    ),
    *("openai", "pandas", "sympy", "tensorboard", "tinker", "torch", "transformers"),
)
INSTALLED = ("anthropic", "chromadb", "datasets", "google.genai", "openai", "torch")


def test_a_server_starts_without_the_libraries(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from importlib.util import find_spec
from pathlib import Path
from crucible.port.dataset.v1 import dataset_pb2
from crucible.port.hub.v1 import hub_pb2
from crucible_client import KitchenClient
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import KitchenError
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.ports.host import PortHost
from crucible_kitchen.server import KitchenServer

def loaded():
    return [name for name in {LIBRARIES!r} if name in sys.modules]

async def main():
    print("absent", [name for name in {INSTALLED!r} if find_spec(name) is None])
    data = Path({str(tmp_path / "data")!r})
    server = KitchenServer(ServerOptions(listen="unix:" + {str(tmp_path / "s")!r}, data=data))
    await server.start()
    print("server", loaded())
    async with KitchenClient.connect(server.address) as kitchen:
        print(*(each.port for each in await kitchen.list_adapters()))
        for port in ("blob", "metrics", "registry", "tokenizer"):
            await kitchen.probe_adapter(port)
    print("adapters", loaded())
    await server.stop()
    host = PortHost.open(None, AdapterContext(data_dir=data))
    print((await host.info("hub")).name, (await host.info("dataset")).name)
    hub, dataset = await host.stub("hub"), await host.stub("dataset")
    for repo in ("builtin:tiny-qwen3", "Qwen/Qwen3-0.6B"):
        try:
            await hub.GetRepoInfo(hub_pb2.GetRepoInfoRequest(ref=hub_pb2.RepoRef(repo=repo)))
        except KitchenError as error:
            print(error.reason)
        print(repo, loaded())
    source = dataset_pb2.DatasetSource(uri="builtin:word-problems")
    await dataset.OpenDataset(dataset_pb2.OpenDatasetRequest(source=source))
    print("rows", loaded())
    await host.close()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == [
        "absent []",
        "server []",
        "blob dataset hub metrics registry sampling tokenizer training",
        "adapters []",
        "huggingface-hub huggingface-datasets",
        "builtin:tiny-qwen3 []",
        # The address of the tests' environment, where nobody listens: asked by a process of its own.
        "HUB_UNREACHABLE",
        "Qwen/Qwen3-0.6B []",
        "rows []",
    ], done.stderr


def adapters(path: Path, **written: object) -> tuple[str, str]:
    path.write_text(yaml.safe_dump(written))
    mappings = load_manifest(path)
    return mappings["hub"].adapter, mappings["dataset"].adapter


def test_profiles_say_what_serves_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kitchen.yaml"
    hugging, local = ("builtin:huggingface",) * 2, ("builtin:local",) * 2
    assert load_manifest(None)["hub"].adapter == "builtin:huggingface"
    assert adapters(path) == hugging
    assert adapters(path, profile="hub") == hugging
    assert adapters(path, profile="local") == local
    assert adapters(path, profile="test") == local
    assert adapters(path, profile="local", ports={"hub": "builtin:huggingface"}) == (hugging[0], local[1])

    installed = manifest.find_spec
    monkeypatch.setattr(manifest, "find_spec", lambda name: None if name == "datasets" else installed(name))
    assert adapters(path) == local
    with refused(InvalidArgumentError, "MANIFEST_INVALID", says="pip install 'crucible-kitchen[hf]'"):
        adapters(path, profile="hub")
