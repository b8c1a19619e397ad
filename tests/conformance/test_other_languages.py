"""The adapters in other languages do what their ports' contracts say."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible_kit.conformance import open_command, run_suite, settings_of
from tests.conformance.test_builtin_adapters import passes
from tests.contract.elixir import ADAPTER_COMMAND, compiled, needs_elixir
from tests.contract.processes import HAS_NODE, TYPESCRIPT, WHY_NOT_NODE


@pytest.mark.skipif(not HAS_NODE, reason=WHY_NOT_NODE)
@pytest.mark.parametrize(("port", "program"), [("blob", "blob_store.mjs --root {folder}"), ("reward", "reward.mjs")])
async def test_typescript(port: str, program: str, tmp_path: Path) -> None:
    async with open_command(f"node {TYPESCRIPT / program.format(folder=tmp_path)}") as opened:
        passes(await run_suite(opened.channel, port, settings_of(port, {}), restart=opened.restart))


@needs_elixir
@pytest.mark.parametrize("port", ["training", "sampling"])
async def test_elixir(port: str) -> None:
    compiled()
    async with open_command(ADAPTER_COMMAND) as opened:
        # Its cowboy takes seconds for messages of many MiB.
        given = {"base_model": "toy-64", "largest_message_bytes": 1024 * 1024}
        passes(await run_suite(opened.channel, port, settings_of(port, given), restart=opened.restart))
