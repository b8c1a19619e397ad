"""What a run of the benchmarks stood on: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "transformers", "peft", "trl", "grpcio", "protobuf", "SQLAlchemy")
_FSYNCS = 50


def facts() -> dict[str, str]:
    """By name, for people."""
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": _commit(),
        "CPU": f"{cpu[0].partition(':')[2].strip() if cpu else platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores",
        "memory": f"{int(memory.split()[1]) / 2**20:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
        "fsync of 4 KiB": f"{_fsync_ms():.1f} ms (median of {_FSYNCS})",
        "load average before": f"{os.getloadavg()[0]:.2f}",
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    # The table itself may be there from the last run.
    changed = [line for line in git("status", "--porcelain").splitlines() if not line.endswith("benchmarks/RESULTS.md")]
    return f"{commit} with uncommitted changes" if changed else commit


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _fsync_ms() -> float:
    """What one durable commit costs at the least on the disk of temporary files."""
    times = []
    # A named one: a nameless file costs the file system no commit of its journal.
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(_FSYNCS):
            file.write(bytes(4096))
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3
