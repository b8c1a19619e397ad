"""Every built-in adapter and every toy keeps the contract, however it is reached."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

from crucible_kit.adapter import AdapterContext
from crucible_kit.conformance import Report, Verdict, run_suite, settings_of
from tests.conformance.bindings import BINDINGS, Capabilities, Servicers
from tests.conformance.toy.blob import ToyBlobs
from tests.conformance.toy.sampling import CAPABILITIES as TOY_SAMPLING
from tests.conformance.toy.sampling import ToySampling
from tests.conformance.toy.training import CAPABILITIES as TOY_TRAINING
from tests.conformance.toy.training import ToyTraining
from tests.embedding.provider import DIMENSION, MAX_TOKENS, Provider
from tests.embedding.wires import WIRES, Wire

Made = AbstractAsyncContextManager[tuple[Servicers, Capabilities]]

LOCAL = (
    *("blob.local", "dataset.local", "hub.local", "metrics.sqlite", "registry.sqlite", "tokenizer.tokenizers"),
    *("vector.chroma", "vector.memory"),
)
# That messages of 32 MiB pass is the same for all whom the kit serves: test_torch_engine.py shows it on each binding.
_SMALL = {"largest_message_bytes": 1024 * 1024}
# The others need a model or somebody else's service.
INSTALLED = [
    each
    for each in sorted(entry_points(group="crucible_kitchen.adapters"), key=lambda each: each.name)
    if each.name in LOCAL or ".fake_" in each.name
]


def passes(report: Report) -> None:
    """Nothing failed, and something was looked at."""
    failed = {each.requirement.id: each.problem for each in report.results if each.verdict is Verdict.FAILED}
    assert not failed
    assert len(report.ids(Verdict.PASSED)) > len(report.results) / 2


@asynccontextmanager
async def _installed(entry: EntryPoint) -> AsyncIterator[tuple[Servicers, Capabilities]]:
    kind: Any = entry.load()
    port = kind.description.port
    with tempfile.TemporaryDirectory() as folder:
        adapter = kind(kind.description.options(), AdapterContext(data_dir=Path(folder)))
        try:
            yield {port: adapter}, {port: kind.description.capabilities}
        finally:
            await adapter.close()


@asynccontextmanager
async def _embedding(wire: Wire) -> AsyncIterator[tuple[Servicers, Capabilities]]:
    provider, kind = Provider(wire), wire.adapter
    await provider.start()
    known = {wire.model: {"dimension": DIMENSION, "max_input_tokens": MAX_TOKENS}}
    options: Any = kind.description.options
    with tempfile.TemporaryDirectory() as folder:
        context = AdapterContext(data_dir=Path(folder), secrets={"api_key": "sk-0123456789"})
        address = provider.address + wire.base_path
        adapter = kind(options(model=wire.model, models=known, base_url=address), context)
        try:
            yield {"embedding": adapter}, {"embedding": kind.description.capabilities}
        finally:
            await adapter.close()
            await provider.stop()


@asynccontextmanager
async def _toy_trainer() -> AsyncIterator[tuple[Servicers, Capabilities]]:
    training = ToyTraining()
    yield (
        {"training": training, "sampling": ToySampling(training)},
        {"training": TOY_TRAINING, "sampling": TOY_SAMPLING},
    )


@asynccontextmanager
async def _toy_blobs() -> AsyncIterator[tuple[Servicers, Capabilities]]:
    yield {"blob": ToyBlobs()}, {"blob": ()}


def _toys() -> list[Any]:
    toys: dict[str, tuple[Callable[[], Made], dict[str, Any]]] = {
        "training": (_toy_trainer, {"base_model": "toy", "learning_rate": 0.05}),
        "sampling": (_toy_trainer, {"base_model": "toy"}),
        "blob": (_toy_blobs, {}),
    }
    return [pytest.param(port, make, given, id=f"{port}.toy") for port, (make, given) in toys.items()]


def test_every_local_adapter_is_installed() -> None:
    assert set(LOCAL) <= {each.name for each in INSTALLED}


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("entry", INSTALLED, ids=lambda entry: entry.name)
async def test_built_in_adapters_pass(entry: EntryPoint, binding: str) -> None:
    port = entry.name.partition(".")[0]
    async with _installed(entry) as made, BINDINGS[binding](*made) as channel:
        passes(await run_suite(channel, port, settings_of(port, _SMALL)))


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)
async def test_embeddings_by_providers_pass(wire: Wire, binding: str) -> None:
    async with _embedding(wire) as made, BINDINGS[binding](*made) as channel:
        report = await run_suite(channel, "embedding", settings_of("embedding", _SMALL))
        passes(report)
        # The model tells its limit, and nothing is cut.
        assert "EMB-MODELS-02" in report.ids(Verdict.PASSED)


@pytest.mark.parametrize(("port", "make", "given"), _toys())
async def test_toys_pass(port: str, make: Callable[[], Made], given: dict[str, Any]) -> None:
    """They are what the mutants are made of, which run over the object."""
    async with make() as made, BINDINGS["object"](*made) as channel:
        passes(await run_suite(channel, port, settings_of(port, given)))
