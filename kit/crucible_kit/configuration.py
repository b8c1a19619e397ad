"""Settings that an adapter takes from its host's manifest, through Configure.

A servicer that takes any says so by two members beside its methods:

    class Scores(reward_pb2_grpc.RewardServiceServicer):
        options = ScoresOptions          # a pydantic model; its JSON Schema is in the handshake

        async def configure(self, options: ScoresOptions, secrets: Mapping[str, str]) -> None:
            self._threshold = options.threshold
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from pydantic import BaseModel, ConfigDict

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.adapter import to_struct
from crucible_kit.errors import FailedPreconditionError, UnimplementedError
from crucible_kit.ports import PORTS
from crucible_kit.settings import parse_settings

_DEFAULT_INSTANCES = ("", "default")


class ServicerConfiguration:
    """Configure for servicers with `options` and `configure`; the others take no settings.

    Args:
        servicers: by port name.

    Raises:
        TypeError: `configure` is not async, or `options` is no model.
    """

    def __init__(self, servicers: Mapping[str, Any]) -> None:
        found = {port: servicer for port, servicer in servicers.items() if _is_configurable(servicer)}
        self._servicers = {PORTS[port].service.full_name: servicer for port, servicer in found.items()}
        self._models = {service: _strict(servicer.options) for service, servicer in self._servicers.items()}
        self._applied: dict[str, adapter_pb2.ConfigureRequest] = {}
        self._lock = asyncio.Lock()

    def describe(self, port: adapter_pb2.PortSupport) -> None:
        """Adds the schema of the port's settings, if it takes any."""
        model = self._models.get(port.service)
        if model is not None:
            port.config_schema.CopyFrom(to_struct(model.model_json_schema()))

    async def configure(self, request: adapter_pb2.ConfigureRequest) -> adapter_pb2.ConfigureResponse:
        """Hands the settings to the port's servicer, unless it has them.

        Raises:
            UnimplementedError: CAPABILITY_MISSING, the port takes none, or there is one instance only.
            FailedPreconditionError: STALE_GENERATION.
            InvalidArgumentError: FIELD_INVALID with the keys that don't fit.
        """
        servicer = self._servicers.get(request.service)
        if servicer is None:
            raise UnimplementedError(
                f"{request.service} takes no settings here: leave options and secrets out", reason="CAPABILITY_MISSING"
            )
        if request.instance not in _DEFAULT_INSTANCES:
            raise UnimplementedError(
                f"instance: {request.instance!r}: there is one instance only, default", reason="CAPABILITY_MISSING"
            )
        async with self._lock:
            return await self._apply(servicer, request)

    async def _apply(self, servicer: Any, request: adapter_pb2.ConfigureRequest) -> adapter_pb2.ConfigureResponse:
        applied = self._applied.get(request.service)
        if applied is not None and request.generation < applied.generation:
            raise FailedPreconditionError(
                f"generation: {request.generation} is older than {applied.generation}, which is in force: read the "
                "settings again",
                reason="STALE_GENERATION",
                metadata={"generation": request.generation, "in_force": applied.generation},
            )
        if applied is not None and (applied.settings, applied.secrets) == (request.settings, request.secrets):
            applied.generation = request.generation
            return adapter_pb2.ConfigureResponse()
        settings = MessageToDict(request.settings)
        options = parse_settings(self._models[request.service], settings, where="settings", reason="FIELD_INVALID")
        warnings = await servicer.configure(options, dict(request.secrets))
        self._applied[request.service] = request
        return adapter_pb2.ConfigureResponse(warnings=warnings or ())


def _strict(model: type[BaseModel]) -> type[BaseModel]:
    """The model, which refuses unknown keys unless it says itself what to do with them."""
    if model.model_config.get("extra") is not None:
        return model
    return type(model.__name__, (model,), {"model_config": ConfigDict(extra="forbid"), "__doc__": model.__doc__})


def _is_configurable(servicer: Any) -> bool:
    configure = getattr(servicer, "configure", None)
    if configure is None:
        return False
    name, options = type(servicer).__name__, getattr(servicer, "options", None)
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise TypeError(f"{name}.options must be the pydantic model of what {name}.configure takes")
    if not inspect.iscoroutinefunction(configure):
        raise TypeError(f"{name}.configure must be `async def configure(self, options, secrets)`: make it async")
    return True
