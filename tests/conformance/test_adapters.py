"""Every adapter that ships does what its port's contract says, whatever way leads to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

from crucible_kit.adapter import AdapterContext, ProcessAdapter
from crucible_kit.channel import Channel
from crucible_kit.conformance import Report, Verdict, open_command, open_target, run_suite, settings_of
from crucible_kit.conformance.context import Restart
from tests.conformance.bindings import BINDINGS
from tests.contract.elixir import ADAPTER_COMMAND, compiled, needs_elixir
from tests.contract.processes import HAS_NODE, TYPESCRIPT, WHY_NOT_NODE

# Need more than this machine: a hub, a provider.
_ELSEWHERE = ("huggingface", "anthropic", "openai", "google_genai", "minilm", "chroma")
# That messages of 32 MiB pass is the same for all whom the kit serves; one port shows it.
_SMALL = {"largest_message_bytes": 1024 * 1024}


def _shipped(*, processes: bool) -> list[EntryPoint]:
    found = [
        each
        for each in entry_points(group="crucible_kitchen.adapters")
        if each.name.partition(".")[2] not in _ELSEWHERE and isinstance(each.load(), ProcessAdapter) == processes
    ]
    return sorted(found, key=lambda each: each.name)


def _check(report: Report) -> None:
    assert not report.ids(Verdict.FAILED), {
        each.requirement.id: each.problem for each in report.results if each.verdict == Verdict.FAILED
    }
    # A suite of which next to nothing ran would show nothing.
    assert len(report.ids(Verdict.PASSED)) > 30


async def _conforms(channel: Channel, port: str, restart: Restart | None = None, **settings: Any) -> None:
    _check(await run_suite(channel, port, settings_of(port, {**_SMALL, **settings}), restart=restart))


@asynccontextmanager
async def _made(adapter: Any, folder: Path) -> AsyncIterator[Any]:
    servicer = adapter(adapter.description.options(), AdapterContext(data_dir=folder))
    try:
        yield servicer
    finally:
        await servicer.close()


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("entry", _shipped(processes=False), ids=lambda each: each.name)
async def test_adapters_in_the_process(entry: EntryPoint, binding: str, tmp_path: Path) -> None:
    adapter = entry.load()
    port = adapter.description.port
    async with (
        _made(adapter, tmp_path) as servicer,
        BINDINGS[binding]({port: servicer}, {port: adapter.description.capabilities}) as channel,
    ):
        await _conforms(channel, port)


@pytest.mark.parametrize("entry", _shipped(processes=True), ids=lambda each: each.name)
async def test_adapters_in_a_process_of_their_own(entry: EntryPoint) -> None:
    port, _, name = entry.name.partition(".")
    async with open_target(f"builtin:{name}", port) as opened:
        await _conforms(opened.channel, port, opened.restart)


@pytest.mark.skipif(not HAS_NODE, reason=WHY_NOT_NODE)
@pytest.mark.parametrize(("port", "program"), [("blob", "blob_store.mjs --root {folder}"), ("reward", "reward.mjs")])
async def test_typescript(port: str, program: str, tmp_path: Path) -> None:
    async with open_command(f"node {TYPESCRIPT / program.format(folder=tmp_path)}") as opened:
        _check(await run_suite(opened.channel, port, settings_of(port, {}), restart=opened.restart))


@needs_elixir
@pytest.mark.parametrize("port", ["training", "sampling"])
async def test_elixir(port: str) -> None:
    compiled()
    async with open_command(ADAPTER_COMMAND) as opened:
        await _conforms(opened.channel, port, opened.restart, base_model="toy-64")
