"""Blobs and metrics in a process of their own: python -m tests.system.stores_process DATA_FOLDER ARGUMENT ..."""

from __future__ import annotations

import sys
from pathlib import Path

from crucible_adapters.blob.local import LocalBlobOptions, LocalBlobStore
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_kit.adapter import AdapterContext, AdapterOptions
from crucible_kit.author import run_adapter

if __name__ == "__main__":
    context = AdapterContext(data_dir=Path(sys.argv[1]))
    run_adapter(
        name="stores",
        ports={
            "blob": LocalBlobStore(LocalBlobOptions(), context),
            "metrics": SqliteMetricsStore(AdapterOptions(), context),
        },
        argv=sys.argv[2:],
    )
