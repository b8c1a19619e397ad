"""Adapters in a process of their own that nobody looks after: it is killed, and started again when a test says so.

Prints `ready` once it serves, and then the batch key of every batch of metrics that it has recorded.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from crucible_adapters.blob.local import LocalBlobStore
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_kit.adapter import AdapterContext
from crucible_kit.serving import serve_ports


class TellingMetricsStore(SqliteMetricsStore):
    """Says what it has recorded."""

    async def RecordMetrics(self, request: Any, context: Any) -> Any:
        response = await super().RecordMetrics(request, context)
        print(request.batch_key, flush=True)
        return response


ADAPTERS: dict[str, Any] = {"blob": LocalBlobStore, "metrics": TellingMetricsStore}


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--port", choices=ADAPTERS, required=True)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    adapter = ADAPTERS[arguments.port]
    description = adapter.description
    servicer = adapter(description.options(), AdapterContext(data_dir=arguments.data))
    capabilities = {arguments.port: description.capabilities}
    served = await serve_ports(
        {arguments.port: servicer}, arguments.listen, name=description.name, capabilities=capabilities
    )
    print("ready", flush=True)
    await served.server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
