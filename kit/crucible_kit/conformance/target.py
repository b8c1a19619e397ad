"""From what a caller names to a channel: an address, an installed adapter, a class, or a command."""

from __future__ import annotations

import importlib
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterInfoService, ProcessAdapter
from crucible_kit.channel import Channel, ObjectChannel, connect
from crucible_kit.conformance.context import Restart
from crucible_kit.conformance.launch import AdapterChild, launched
from crucible_kit.errors import InvalidArgumentError, field_error
from crucible_kit.ports import PORTS
from crucible_kit.settings import parse_settings, unknown_key

_ENTRY_POINTS = "crucible_kitchen.adapters"
_HANDSHAKE = adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name


class Opened(NamedTuple):
    """A target that can be called.

    Attributes:
        restart: kills and starts it; None: it was not started here as a process.
    """

    channel: Channel
    restart: Restart | None = None


@asynccontextmanager
async def open_target(
    target: str,
    port: str,
    *,
    options: Mapping[str, Any] | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    token: str = "",
) -> AsyncIterator[Opened]:
    """A channel to an adapter; what is started for it ends with the block.

    Args:
        target: host:port, unix:PATH, builtin:NAME, or python:package.module:Class.
        port: the port under test.
        options: settings of a builtin: or python: adapter.
        credentials: TLS of an address.
        token: bearer token of an address; empty: none.

    Raises:
        InvalidArgumentError: TARGET_INVALID; CONFIG_INVALID for options that do not fit.
        UnavailableError: ADAPTER_START_FAILED.
    """
    kind, _, name = target.partition(":")
    if kind == "builtin":
        adapter = _installed(port, name)
    elif kind == "python":
        adapter = _imported(name)
    else:
        if options:
            raise field_error("option", "an adapter at an address has its options already", reason="TARGET_INVALID")
        channel = connect(target, credentials=credentials, token=token, retry=False)
        try:
            yield Opened(channel)
        finally:
            await channel.close()
        return
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        opening = _process if isinstance(adapter, ProcessAdapter) else _object
        async with opening(adapter, port, options or {}, Path(folder)) as opened:
            yield opened


@asynccontextmanager
async def open_command(command: str) -> AsyncIterator[Opened]:
    """A channel to an adapter that is started here, as a host starts `exec:` ones; it ends with the block.

    Args:
        command: a command line, split as a shell does. It gets CRUCIBLE_ADAPTER_LISTEN and announces its address.

    Raises:
        InvalidArgumentError: TARGET_INVALID when it can't be split or there is no such program.
        UnavailableError: ADAPTER_START_FAILED.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise field_error("exec", f"{command!r} is no command line: {error}", reason="TARGET_INVALID") from error
    if not words:
        raise field_error("exec", "is empty: give a command", reason="TARGET_INVALID")
    child = AdapterChild(words, environment={}, announces=True)
    try:
        async with launched(child) as channel:
            yield Opened(channel, child.restart)
    except (FileNotFoundError, PermissionError) as error:
        raise field_error("exec", f"{words[0]!r} can't be run: {error.strerror}", reason="TARGET_INVALID") from error


@asynccontextmanager
async def _object(adapter: Any, port: str, options: Mapping[str, Any], folder: Path) -> AsyncIterator[Opened]:
    description: AdapterDescription = adapter.description
    if description.port != port:
        raise _invalid(f"{description.name} serves the port {description.port}, not {port}")
    servicer = adapter(parse_settings(description.options, options, where="option"), AdapterContext(data_dir=folder))
    try:
        yield Opened(
            ObjectChannel({PORTS[port].service.full_name: servicer, _HANDSHAKE: AdapterInfoService.of(servicer)})
        )
    finally:
        await servicer.close()


@asynccontextmanager
async def _process(
    adapter: ProcessAdapter, port: str, options: Mapping[str, Any], folder: Path
) -> AsyncIterator[Opened]:
    if port not in adapter.ports:
        raise _invalid(f"{adapter.name} serves {', '.join(adapter.ports)}, not {port}")
    adapter.check_packages()
    given = adapter.arguments(parse_settings(adapter.options, options, where="option"))
    command = [
        *(sys.executable, "-m", adapter.module, "--listen", "{listen}", "--work-dir", str(folder), "--parent-pipe"),
        *given,
    ]
    child = AdapterChild(command, environment=adapter.environment, announces=False)
    async with launched(child) as channel:
        yield Opened(channel, child.restart)


def _installed(port: str, name: str) -> Any:
    known = {each.name: each for each in entry_points(group=_ENTRY_POINTS)}
    entry = known.get(f"{port}.{name}")
    if entry is None:
        names = [each.partition(".")[2] for each in known if each.startswith(f"{port}.")]
        raise _invalid(f"builtin:{name}: {unknown_key(name, names)}".replace("key", "adapter"))
    return entry.load()


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise _invalid(f"python:{path} can't be imported ({error}); write python:package.module:Class") from error


def _invalid(problem: str) -> InvalidArgumentError:
    return field_error("target", problem, reason="TARGET_INVALID")
