"""Adapters that conformance starts itself, kills and starts again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from crucible_kit.conformance import (
    Report,
    Verdict,
    open_command,
    open_target,
    requirements_of,
    run_suite,
    settings_of,
)
from crucible_kit.conformance.requirement import Stage
from crucible_kit.errors import InvalidArgumentError, UnavailableError
from tests.conformance.child import ADAPTERS

CHILD = Path(__file__).parent / "child.py"
SETTINGS = {"training": {"base_model": "toy", "learning_rate": 0.05}, "sampling": {"base_model": "toy"}}
MUTANTS = {
    "forgetful-blob": ["BLB-RESTART-01"],
    "same-id-blob": ["BLB-RESTART-01", "HSK-RESTART-01"],
    "same-sessions-training": ["TRN-RESTART-01"],
}
KEEP = [each for each in ADAPTERS if each not in MUTANTS]


def command(*words: object) -> str:
    """A command line."""
    return shlex.join([sys.executable, *map(str, words)])


async def report_on(name: str, folder: Path, settings: Mapping[str, Any]) -> Report:
    """What must hold over restarts, asked of a child."""
    port = name.rpartition("-")[2]
    only = [each.id for each in requirements_of(port) if each.stage is Stage.RESTART]
    async with open_command(command(CHILD, name, folder)) as opened:
        return await run_suite(
            opened.channel, port, settings_of(port, settings), only=[*only, "HSK-INFO"], restart=opened.restart
        )


@pytest.mark.parametrize("name", KEEP)
async def test_adapters_that_keep_the_contract_over_restarts_pass(name: str, tmp_path: Path) -> None:
    report = await report_on(name, tmp_path, SETTINGS.get(name, {}))
    assert report.ids(Verdict.PASSED) == [each.requirement.id for each in report.results]
    assert "HSK-RESTART-01" in report.ids(Verdict.PASSED)


async def test_the_torch_engine_keeps_the_contract_over_restarts() -> None:
    """The process that a host starts. What needs no restart is asked in test_builtin_adapters.py, without it."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    restarts = [each.id for each in requirements_of("training") if each.stage is Stage.RESTART]
    async with open_target("builtin:torch", "training") as opened:
        report = await run_suite(opened.channel, "training", only=restarts, restart=opened.restart)
    assert report.ids(Verdict.PASSED) == restarts


@pytest.mark.parametrize("name", MUTANTS)
async def test_mutants_are_found(name: str, tmp_path: Path) -> None:
    report = await report_on(name, tmp_path, SETTINGS.get(name.rpartition("-")[2], {}))
    assert sorted(report.ids(Verdict.FAILED)) == MUTANTS[name]


async def test_a_child_ends_with_the_run(tmp_path: Path) -> None:
    told = tmp_path / "ended"
    ends = f"import runpy, sys; sys.argv = ['child', 'blob', {str(tmp_path)!r}]\n" + (
        f"try: runpy.run_path({str(CHILD)!r}, run_name='__main__')\nfinally: open({str(told)!r}, 'w').write('yes')"
    )
    async with open_command(command("-c", ends)):
        assert not told.exists()
    assert told.read_text() == "yes"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise SystemExit('no model')", "ended, or closed stdout, without a line.*no model"),
        ("print('Listening!', flush=True); import time; time.sleep(60)", "its first line is 'Listening!'"),
        ("""print('{"crucible": 2, "address": "unix:x"}', flush=True)""", "its first line is"),
        (
            """import sys; print('{"crucible": 1, "address": "unix:/no"}', flush=True); sys.exit('out of memory')""",
            "ended with status 1.*out of memory",
        ),
    ],
)
async def test_a_child_that_does_not_start_is_told_with_its_last_lines(code: str, told: str) -> None:
    with pytest.raises(UnavailableError, match=f"(?s){told}") as caught:
        async with open_command(command("-c", code)):
            pass
    assert caught.value.reason == "ADAPTER_START_FAILED"


@pytest.mark.parametrize("line", ["", "'unbalanced", "/no/such/program --port 1"])
async def test_what_is_no_command_is_refused(line: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        async with open_command(line):
            pass
    assert caught.value.reason == "TARGET_INVALID"
