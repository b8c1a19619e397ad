"""An adapter of one's own in ten lines: a class for a port, and `run_adapter`.

    from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
    from crucible_kit.author import run_adapter
    from crucible_kit.errors import NotFoundError

    class Blobs(blob_pb2_grpc.BlobStoreServiceServicer):
        async def StatBlob(self, request, context):
            raise NotFoundError(f"no blob {request.key!r}", reason="BLOB_NOT_FOUND", metadata={"key": request.key})

    if __name__ == "__main__":
        run_adapter(name="my-blobs", ports={"blob": Blobs()})

Requests arrive checked against their proto. Failures are errors of `crucible_kit.errors`, with a reason; `field_error`
and `capability_missing` make the two most frequent ones, and any other exception becomes INTERNAL, its text only in the
log. A class that takes settings from the manifest has `options` and `configure`, see `crucible_kit.configuration`. What
it offers beyond the port's minimum stands in its attribute `capabilities`, or in those of `run_adapter`. A method
`async def close(self)` is called at the end.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from crucible_kit.author_command import Command, parse_command
from crucible_kit.author_process import Announcement, ended_by_host
from crucible_kit.configuration import ServicerConfiguration
from crucible_kit.errors import KitchenError
from crucible_kit.outcomes import is_generated_default
from crucible_kit.ports import PORTS
from crucible_kit.serving import adapter_info, by_service, serve_ports
from crucible_kit.settings import unknown_key
from crucible_kit.tunnel_dial import DialOut

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 10.0
_CAPABILITY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")


def run_adapter(
    *,
    name: str,
    ports: Mapping[str, Any],
    capabilities: Mapping[str, tuple[str, ...]] = {},
    version: str = "0",
    argv: Sequence[str] | None = None,
) -> None:
    """Serves port implementations until SIGTERM, SIGINT, or the end of a host that has started this process.

    With `--listen` it serves on an address, with `--attach` it dials out to a kitchen, and without either it does what
    the host that starts it as `exec:` asks. Once it serves it prints one line: {"crucible": 1, "address": "..."}.
    Everything else goes to stderr. It ends with status 0; 1: it could not serve; 2: the command line is wrong.

    Args:
        name: the adapter's, such as my-blobs.
        ports: implementations by port name: objects of the generated servicer classes, whose methods are async.
        capabilities: optional behaviour by port name, in place of the implementation's attribute `capabilities`.
        version: the adapter's.
        argv: arguments of the command line; None: those of the process.

    Raises:
        TypeError: a method is not async.
        ValueError: there is no such port or capability.
    """
    check_servicers(ports)
    declared = declared_capabilities(ports, capabilities)
    command = parse_command(name, argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_run(command, name=name, ports=ports, capabilities=declared, version=version))
    except KitchenError as error:
        sys.exit(f"{name}: {error.message}")


def check_servicers(ports: Mapping[str, Any]) -> None:
    """Raises ValueError for a port that does not exist, TypeError for a method that would block the event loop."""
    if not ports:
        raise ValueError("ports: name at least one, such as {'blob': MyBlobs()}")
    for port, servicer in ports.items():
        if port not in PORTS:
            raise ValueError(f"ports: {port!r}: {unknown_key(port, PORTS)}")
        for method in PORTS[port].service.methods:
            _check_method(servicer, method)
    ServicerConfiguration(ports)


def _check_method(servicer: Any, method: MethodDescriptor) -> None:
    handler = getattr(servicer, method.name, None)
    if handler is None or is_generated_default(handler):
        return
    where = f"{type(servicer).__name__}.{method.name}"
    if method.server_streaming:
        if not inspect.isasyncgenfunction(handler):
            raise TypeError(f"{where} answers with a stream: make it async, `async def` with `yield`")
    elif not inspect.iscoroutinefunction(handler):
        raise TypeError(
            f"{where} would hold up every other call: make it async, `async def`, and let work that blocks run in "
            "`await asyncio.to_thread(...)`"
        )


def declared_capabilities(
    ports: Mapping[str, Any], capabilities: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """What each implementation declares: the entry of `capabilities`, or its attribute of that name, or nothing.

    Raises:
        ValueError: for a port that is not served, or a name that is not of the form `<port>.<what>`.
    """
    for port in capabilities:
        if port not in ports:
            raise ValueError(f"capabilities: {port!r} is not among the ports, {', '.join(sorted(ports))}")
    declared = {}
    for port, servicer in ports.items():
        names = capabilities.get(port, getattr(servicer, "capabilities", ()))
        for each in (names,) if isinstance(names, str) else names:
            if isinstance(names, str) or not _CAPABILITY.fullmatch(each) or not each.startswith(f"{port}."):
                raise ValueError(
                    f"capabilities of {port}: {each!r} must be in a tuple of names such as {port}.streaming"
                )
        declared[port] = tuple(names)
    return declared


async def _run(
    command: Command,
    *,
    name: str,
    ports: Mapping[str, Any],
    capabilities: Mapping[str, tuple[str, ...]],
    version: str,
) -> None:
    ended = ended_by_host(watch_stdin=command.from_host)
    # A host reads one line, however often the adapter attaches.
    announcement = Announcement()
    try:
        if command.attach:
            info = adapter_info(ports, name=name, capabilities=capabilities, version=version)
            dialling = DialOut(
                command.attach,
                name=command.name,
                servicers=by_service(ports, info),
                info=info.describe(),
                token=command.token,
                credentials=command.channel_credentials(),
                grace=_GRACE_SECONDS,
                on_attached=lambda: announcement.print(command.attach),
            )
            await _until(ended, dialling)
        else:
            served = await serve_ports(
                ports,
                command.listen,
                name=name,
                capabilities=capabilities,
                version=version,
                credentials=command.server_credentials(),
                guard=command.guard(),
            )
            logger.info("serving %s on %s", ", ".join(sorted(ports)), served.address)
            announcement.print(served.address)
            await ended.wait()
            await served.stop(_GRACE_SECONDS)
    finally:
        for servicer in ports.values():
            if inspect.iscoroutinefunction(close := getattr(servicer, "close", None)):
                await close()


async def _until(ended: asyncio.Event, dialling: DialOut) -> None:
    running, waiting = asyncio.create_task(dialling.run()), asyncio.create_task(ended.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    dialling.end()
    await running
