"""Adapters written in Python that the server loads: objects in this process, or children of it."""

from __future__ import annotations

import importlib
import logging
from contextlib import suppress
from dataclasses import replace
from typing import Any

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.adapter import (
    AdapterDescription,
    AdapterInfoService,
    AdapterOptions,
    InProcessAdapter,
    ProcessAdapter,
    ProviderAdapter,
)
from crucible_kit.channel import ObjectChannel
from crucible_kit.errors import KitchenError
from crucible_kit.ports import PORTS
from crucible_kit.settings import parse_settings, unknown_key
from crucible_kitchen.ports.binding import Opened, Opening
from crucible_kitchen.ports.handshake import get_info
from crucible_kitchen.ports.installed import adapter_names, find_adapter
from crucible_kitchen.ports.mapping import PortMapping
from crucible_kitchen.ports.process import AdapterProcess

logger = logging.getLogger(__name__)

_ADAPTER_SERVICE = adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name


class ObjectBinding:
    """An adapter that is an object in this process."""

    declared: frozenset[str] = frozenset()

    def __init__(self, port: str, adapter: InProcessAdapter) -> None:
        self._adapter = adapter
        services = {PORTS[port].service.full_name: adapter, _ADAPTER_SERVICE: AdapterInfoService.of(adapter)}
        self.channel = ObjectChannel(services)
        self.info: adapter_pb2.GetAdapterInfoResponse | None = None

    def is_ready(self, port: str) -> bool:
        """Always."""
        return True

    async def ensure(self, port: str, *, fresh: bool = False) -> adapter_pb2.GetAdapterInfoResponse:
        """Its handshake."""
        if self.info is None:
            self.info = await get_info(self.channel)
        return self.info

    async def failed(self, port: str, error: KitchenError, instance_id: str) -> bool:
        """Nothing to note."""
        return False

    async def close(self) -> None:
        """Lets the adapter free what it holds."""
        await self._adapter.close()


def open_loaded(opening: Opening) -> Opened:
    """The opener of builtin: and python: mappings. In-process adapters are made now, so that bad options are found
    now.
    """
    target = _load(opening)
    if isinstance(target, ProcessAdapter):
        return _open_process(target, opening)
    description = _description(target, opening)
    context = replace(opening.context, secrets=opening.secrets)
    options = _options(opening, description.options)
    try:
        adapter = target(options, context)
        binding = ObjectBinding(opening.port, adapter)
    except KitchenError as error:
        raise opening.located(error) from error
    except Exception as error:
        logger.exception("%s: %s can't be made", opening.where, opening.mapping.adapter)
        raise opening.refused(f"can't be made: {type(error).__name__}: {error}") from error
    schema = description.options.model_json_schema()
    return Opened(binding=binding, options_schema=schema, asks_provider=isinstance(adapter, ProviderAdapter))


def check_loaded(opening: Opening) -> None:
    """Checks a builtin: or python: mapping as far as that goes without making its adapter."""
    target = _load(opening)
    if isinstance(target, ProcessAdapter):
        _check_process(target, opening)
    else:
        _options(opening, _description(target, opening).options)


def preload(port: str, mapping: PortMapping) -> None:
    """Imports what a mapping names, if it names anything to import: that may take seconds, and blocks. What goes wrong
    is told when it is opened.
    """
    with suppress(Exception):
        if mapping.kind == "builtin" and (entry := find_adapter(port, mapping.target)) is not None:
            entry.load()
        elif mapping.kind == "python":
            importlib.import_module(mapping.target.partition(":")[0])


def _load(opening: Opening) -> Any:
    """The adapter's class, or its ProcessAdapter."""
    port, mapping = opening.port, opening.mapping
    if mapping.kind == "builtin":
        entry = find_adapter(port, mapping.target)
        if entry is None:
            names = ", ".join(adapter_names(port)) or "none"
            raise opening.refused(f"is not installed; builtin adapters of this port: {names}")
        return entry.load()
    module, _, name = mapping.target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise opening.refused(f"can't be imported ({error}); write python:package.module:Class") from error


def _description(target: Any, opening: Opening) -> AdapterDescription:
    description = getattr(target, "description", None)
    if not isinstance(description, AdapterDescription):
        raise opening.refused("is no adapter: it has no attribute `description` that is an AdapterDescription")
    if description.port != opening.port:
        raise opening.refused(f"serves the port {description.port}")
    _check_secrets(opening, description.secrets)
    return description


def _check_secrets(opening: Opening, known: tuple[str, ...]) -> None:
    for name in opening.secrets:
        if not known:
            raise opening.refused(f"takes no secrets: leave {name} out")
        if name not in known:
            raise opening.refused(f"takes no secret {name}: {unknown_key(name, known)}")


def _options(opening: Opening, model: type[AdapterOptions]) -> AdapterOptions:
    where = f"{opening.where}.options"
    return parse_settings(model, opening.mapping.options, where=where, reason="MANIFEST_INVALID")


def _check_process(adapter: ProcessAdapter, opening: Opening) -> AdapterOptions:
    if opening.port not in adapter.ports:
        raise opening.refused(f"serves the ports {', '.join(adapter.ports)}")
    _check_secrets(opening, ())
    try:
        adapter.check_packages()
    except KitchenError as error:
        raise opening.located(error) from error
    return _options(opening, adapter.options)


def _open_process(adapter: ProcessAdapter, opening: Opening) -> Opened:
    """One child for all ports that are mapped to the adapter with the same options."""
    options = _check_process(adapter, opening)
    key = f"{adapter.module}:{adapter.name}:{options.model_dump_json()}"
    binding = opening.shared.get(key)
    if binding is None:
        binding = AdapterProcess(
            adapter,
            options,
            socket=opening.socket,
            work_dir=opening.context.data_dir / "adapters" / adapter.name,
            hidden_variables=opening.hidden_variables,
        )
    return Opened(binding=binding, key=key, options_schema=adapter.options.model_json_schema())
