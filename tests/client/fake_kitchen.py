"""A fake kitchen on a real socket: answers from a script and remembers what it was asked."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection

from crucible.kitchen.v1 import (
    adapter_admin_pb2,
    adapter_admin_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    event_pb2,
    run_pb2,
    run_pb2_grpc,
)
from crucible_kit.boundary import BoundaryInterceptor, Guard
from crucible_kit.serving import bind, new_server

SERVICES = {
    "RunService": (run_pb2, run_pb2_grpc),
    "CatalogService": (catalog_pb2, catalog_pb2_grpc),
    "AdapterAdminService": (adapter_admin_pb2, adapter_admin_pb2_grpc),
}
# One turn of a watch: gets the request, yields responses, then returns, raises or hangs.
WatchTurn = Callable[[run_pb2.WatchRunRequest], AsyncIterator[run_pb2.WatchRunResponse]]


class FakeKitchen:
    """All three services of the kitchen.

    Attributes:
        answers: by method: a response, an error to raise, or a function of the request that gives one.
        watches: turns of WatchRun in order; the last one repeats.
        requests: (method, request) of every call in order.
        watch_ended: counts the watches whose handlers have ended.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.watches: list[WatchTurn] = []
        self.requests: list[tuple[str, Any]] = []
        self.watch_ended = 0
        self.watch_left = asyncio.Event()

    def asked(self, method: str) -> list[Any]:
        """The requests of one method."""
        return [request for name, request in self.requests if name == method]

    async def answer(self, method: str, request: Message) -> Any:
        self.requests.append((method, request))
        found = self.answers[method]
        if callable(found):
            found = found(request)
        if asyncio.iscoroutine(found):
            found = await found
        if isinstance(found, Exception):
            raise found
        return found

    async def watch(self, request: run_pb2.WatchRunRequest) -> AsyncIterator[run_pb2.WatchRunResponse]:
        turn = self.watches[min(len(self.asked("WatchRun")), len(self.watches) - 1)]
        self.requests.append(("WatchRun", request))
        try:
            async for each in turn(request):
                yield each
        finally:
            self.watch_ended += 1
            self.watch_left.set()

    def servicer(self, service: str) -> Any:
        """A servicer that asks this object."""
        file, grpc_file = SERVICES[service]
        kitchen = self

        def unary(name: str) -> Any:
            async def method(_: Any, request: Message, context: Any) -> Any:
                return await kitchen.answer(name, request)

            return method

        async def watch(_: Any, request: Any, context: Any) -> AsyncIterator[Any]:
            async for each in kitchen.watch(request):
                yield each

        methods = {
            each.name: watch if each.server_streaming else unary(each.name)
            for each in file.DESCRIPTOR.services_by_name[service].methods
        }
        return type(f"Fake{service}", (getattr(grpc_file, f"{service}Servicer"),), methods)()


@asynccontextmanager
async def served(kitchen: FakeKitchen, address: str = "", guard: Guard | None = None) -> AsyncIterator[str]:
    """Serves it, with reflection, and yields the address."""
    with tempfile.TemporaryDirectory() as folder:
        server = new_server([BoundaryInterceptor(guard=guard)])
        for service, (_, grpc_file) in SERVICES.items():
            getattr(grpc_file, f"add_{service}Servicer_to_server")(kitchen.servicer(service), server)
        names = [f"crucible.kitchen.v1.{service}" for service in SERVICES]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        bound = bind(server, address or f"unix:{Path(folder) / 's'}")
        await server.start()
        try:
            yield bound
        finally:
            await server.stop(0)


def events(first: int, last: int, run_id: str = "r") -> list[event_pb2.RunEvent]:
    """Log lines with these sequence numbers."""
    return [
        event_pb2.RunEvent(
            sequence=sequence, run_id=run_id, log_recorded=event_pb2.LogRecorded(message=f"line {sequence}")
        )
        for sequence in range(first, last + 1)
    ]


def turn(*batches: Sequence[event_pb2.RunEvent], then: Exception | str | None = None) -> WatchTurn:
    """A watch that sends these batches and then ends, raises `then`, or hangs."""

    async def play(request: run_pb2.WatchRunRequest) -> AsyncIterator[run_pb2.WatchRunResponse]:
        for batch in batches:
            last = batch[-1].sequence if batch else request.after_sequence
            yield run_pb2.WatchRunResponse(events=batch, last_sequence=last)
        if isinstance(then, Exception):
            raise then
        if then == "hang":
            await asyncio.Event().wait()

    return play
