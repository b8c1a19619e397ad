"""A worker: grpc.aio without anything of ours, answering from memory what a kitchen answers from its store.

It gets its answers as files of length-prefixed messages, writes its address as its first answer to a command, and
serves until it is ended.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc

from benchmarks.worker import Commands
from crucible.kitchen.v1 import catalog_pb2, catalog_pb2_grpc, run_pb2, run_pb2_grpc


class BareRuns(run_pb2_grpc.RunServiceServicer):
    """One run, and its log in batches."""

    def __init__(self, run: run_pb2.GetRunResponse, batches: list[run_pb2.WatchRunResponse]) -> None:
        self._run = run
        self._batches = batches

    async def GetRun(self, request: run_pb2.GetRunRequest, context: Any) -> run_pb2.GetRunResponse:
        return self._run

    async def WatchRun(self, request: run_pb2.WatchRunRequest, context: Any) -> AsyncIterator[run_pb2.WatchRunResponse]:
        for batch in self._batches:
            yield batch


class BareCatalog(catalog_pb2_grpc.CatalogServiceServicer):
    """One workflow."""

    def __init__(self, workflow: catalog_pb2.GetWorkflowResponse) -> None:
        self._workflow = workflow

    async def GetWorkflow(
        self, request: catalog_pb2.GetWorkflowRequest, context: Any
    ) -> catalog_pb2.GetWorkflowResponse:
        return self._workflow


def write_messages(path: Path, messages: list[Any]) -> None:
    """Each message behind its length, four bytes."""
    with path.open("wb") as file:
        for message in messages:
            data = message.SerializeToString()
            file.write(len(data).to_bytes(4, "little") + data)


def read_messages(path: Path, kind: Any) -> Iterator[Any]:
    """What `write_messages` wrote."""
    data, start = path.read_bytes(), 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        yield kind.FromString(data[start + 4 : end])
        start = end


async def serve(folder: Path) -> None:
    """Serves until stdin ends."""
    server = grpc.aio.server()
    run = next(read_messages(folder / "run", run_pb2.GetRunResponse))
    runs = BareRuns(run, list(read_messages(folder / "batches", run_pb2.WatchRunResponse)))
    run_pb2_grpc.add_RunServiceServicer_to_server(runs, server)
    catalog = BareCatalog(next(read_messages(folder / "workflow", catalog_pb2.GetWorkflowResponse)))
    catalog_pb2_grpc.add_CatalogServiceServicer_to_server(catalog, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    commands = Commands()

    def answer() -> None:
        for _ in commands:
            commands.answer(address=f"127.0.0.1:{port}")

    await asyncio.to_thread(answer)
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    asyncio.run(serve(parser.parse_args().folder))
