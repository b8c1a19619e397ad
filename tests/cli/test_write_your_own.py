"""docs/adapters/write_your_own.md: its code blocks are an adapter that passes the suite."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from crucible_kitchen.cli.starters import COMPLETE, starter
from tests.cli.conftest import ROOT, Kitchen
from tests.contract.processes import HAS_NODE, TYPESCRIPT, WHY_NOT_NODE

GUIDE = (ROOT / "docs" / "adapters" / "write_your_own.md").read_text("utf-8")


def code() -> str:
    """The blocks marked js, one after the other."""
    return "\n\n".join(re.findall(r"^```js\n(.*?)\n```$", GUIDE, re.DOTALL | re.MULTILINE)) + "\n"


def test_the_blocks_are_the_files_of_the_repository(tmp_path: Path) -> None:
    assert code() == starter("reward", "typescript", "my-rewards", tmp_path)["adapter.mjs"]
    changed = {"'./adapter.mjs'": "'./crucible/adapter.mjs'", "node-rewards": "my-rewards", "reward.mjs": "adapter.mjs"}
    text = (TYPESCRIPT / "reward.mjs").read_text("utf-8")
    for old, new in changed.items():
        text = text.replace(old, new)
    assert code() == text


def test_the_table_of_complete_starters_is_true() -> None:
    for language, ports in COMPLETE.items():
        assert f"| `{language}` | {', '.join(ports)} |" in GUIDE


@pytest.mark.skipif(not HAS_NODE, reason=WHY_NOT_NODE)
def test_the_adapter_of_the_guide_passes_the_suite(offline: Kitchen, tmp_path: Path) -> None:
    assert "kitchen adapter new --port reward --language typescript my-rewards" in GUIDE
    made = offline("adapter", "new", "--port", "reward", "--language", "typescript", "my-rewards")
    assert made.code == 0, made.err
    folder = tmp_path / "my-rewards"
    (folder / "node_modules").symlink_to(TYPESCRIPT / "node_modules")
    (folder / "adapter.mjs").write_text(code(), "utf-8")
    command = f"node {folder / 'adapter.mjs'}"
    answer = offline("conformance", "--port", "reward", "--exec", command, "--report", "json")
    assert answer.code == 0, answer.out
    report = json.loads(answer.out)
    assert report["adapter"].startswith("my-rewards ")
    verdicts = {each["verdict"] for each in report["results"] if each["id"].startswith("RWD-")}
    assert verdicts == {"passed"}
