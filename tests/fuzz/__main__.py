"""Plays generated calls against a server, an engine and adapters: `python -m tests.fuzz --calls 100000 --seed 1`.

Every call is drawn from the seed. Exits with status 1 and the shortest case of each problem when there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import Campaign, Report
from tests.fuzz.targets import AdaptersTarget, EngineTarget, ServerTarget, Target

# Of all calls.
_SHARES = {"server": 0.6, "adapters": 0.2, "engine": 0.2}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5000, help="calls in all, shared among the targets")
    parser.add_argument("--seed", type=int, default=1, help="number that every call follows from")
    parser.add_argument("--target", choices=sorted(_SHARES), action="append", help="only this one; may be repeated")
    parser.add_argument("--profile", default="local", help="the server's manifest profile: local or auto")
    parser.add_argument("--sweep", action="store_true", help="before, call with each odd value of each field once")
    parser.add_argument("--by-method", action="store_true", help="tell how the calls of each method ended")
    given = parser.parse_args()
    names = given.target or list(_SHARES)
    whole = sum(_SHARES[name] for name in names)
    reports = [_play(name, round(given.calls * _SHARES[name] / whole), given) for name in names]
    for report in reports:
        print("\n".join(report.lines(by_method=given.by_method)))
    sys.exit(1 if any(report.problems for report in reports) else 0)


def _play(name: str, calls: int, given: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
        return Campaign(_target(name, Path(folder), given.profile)).run(calls, given.seed, swept=given.sweep)


def _target(name: str, folder: Path, profile: str) -> Target:
    match name:
        case "server":
            return ServerTarget(folder / name, profile=profile)
        case "adapters":
            return AdaptersTarget(folder / name)
        case _:
            return EngineTarget(folder / name)


if __name__ == "__main__":
    main()
