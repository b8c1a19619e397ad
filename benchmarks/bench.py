"""All benchmarks, side by side in one run.

    python -m benchmarks.bench                                 # everything, into benchmarks/RESULTS.md
    python -m benchmarks.bench --quick --only training_step    # a look, printed and not kept

TRL is measured where it is installed: the extra `bench` has it, and `make bench` installs that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks import bindings, calls, load, lora_sessions, python_bridge, sampling, starts, training_step
from benchmarks.machine import facts
from benchmarks.report import Table
from benchmarks.scale import FULL, QUICK, Scale

GROUPS = {
    "training_step": training_step.measure,
    "lora_sessions": lora_sessions.measure,
    "sampling": sampling.measure,
    "calls": calls.measure,
    "bindings": bindings.measure,
    "python_bridge": python_bridge.measure,
    "starts": starts.measure,
    "load": load.measure,
}
RESULTS = Path(__file__).parent / "RESULTS.md"

_HOW = """Repeat with `make bench`. Everything below comes from one run: systems that are compared take turns in rounds,
in an order that rotates; samples of all rounds give the median and the quartiles, and a ratio is taken within each
round. The rows marked A/A measure the same thing twice: what they differ by is noise. The aims stand in the tables
whether they are met or not.
"""


async def run(groups: list[str], scale: Scale) -> list[Table]:
    """The groups' tables, measured one after another."""
    tables: list[Table] = []
    for name in groups:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="kb-") as folder:
            tables += await GROUPS[name](scale, Path(folder))
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return tables


def document(about: dict[str, str], tables: list[Table]) -> str:
    """The results as Markdown."""
    lines = ["# Benchmark results", "", _HOW, "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in about.items()]
    return "\n".join(lines) + "\n\n" + "\n".join(table.markdown() for table in tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="groups to measure; the result is printed")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help=f"file for the result; default for a whole run: {RESULTS}")
    parser.add_argument("--json", type=Path, help="file for the findings as JSON")
    arguments = parser.parse_args()
    about = facts()
    start = time.monotonic()
    tables = asyncio.run(run(arguments.only or list(GROUPS), QUICK if arguments.quick else FULL))
    about["duration"] = f"{(time.monotonic() - start) / 60:.1f} minutes"
    text = document(about, tables)
    if arguments.json is not None:
        findings = {table.title: [each.as_json() for each in table.findings] for table in tables}
        arguments.json.write_text(json.dumps(findings, indent=2) + "\n")
    out = arguments.out or (None if arguments.only or arguments.quick else RESULTS)
    if out is None:
        print(text)
        return
    fresh = out.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, out)
    print(f"written to {out}")


if __name__ == "__main__":
    main()
