"""Adapters that run by themselves and are reached over a channel: grpc:, and attach: when one has called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from crucible.adapter.v1 import adapter_pb2
from crucible_kit.channel import Channel, connect
from crucible_kit.errors import DeadlineExceededError, InvalidArgumentError, KitchenError, UnavailableError
from crucible_kit.tls import TlsFields, client_credentials
from crucible_kitchen.ports.binding import Opened, Opening
from crucible_kitchen.ports.handshake import HANDSHAKE_SECONDS, Configurator, Settings, adapter_unavailable, get_info
from crucible_kitchen.ports.single_flight import SingleFlight

# Reasons of calls that did not get through to the adapter, or whose answer did not come back.
LOST_REASONS = frozenset({"UNAVAILABLE", "CONNECTION_LOST", "ADAPTER_UNAVAILABLE", "ADAPTER_DETACHED"})
NOT_CONFIGURED = "NOT_CONFIGURED"
_TLS_FIELDS = TlsFields(ca="tls.ca", cert="tls.cert", key="tls.key")


class RemoteAdapter:
    """An adapter of one port behind a channel. When the connection broke, the next call shakes hands again: another
    instance of the adapter gets its settings before it gets calls.

    Args:
        opening: the mapping and its settings.
        channel: to the adapter; its calls wait for one that is away. Closed with this object.
        at_once: the same for calls that fail at once and say why; None: there is no such way.
        connected: whether the connection stands; a new one may lead to another instance.
    """

    declared: frozenset[str] = frozenset()

    def __init__(
        self,
        opening: Opening,
        channel: Channel,
        *,
        at_once: Channel | None = None,
        connected: Callable[[], bool] = lambda: True,
    ) -> None:
        self._adapter = opening.mapping.adapter
        self._wait_seconds = opening.mapping.wait_seconds
        self._channel = channel
        self._at_once = at_once
        self._connected = connected
        self._info: adapter_pb2.GetAdapterInfoResponse | None = None
        self._lost = False
        self._greeting: SingleFlight[adapter_pb2.GetAdapterInfoResponse] = SingleFlight()
        self._configurator = Configurator()
        self._configurator.add(opening.port, settings_of(opening))

    @property
    def channel(self) -> Channel:
        """The way to it."""
        return self._channel

    @property
    def info(self) -> adapter_pb2.GetAdapterInfoResponse | None:
        """Its last handshake; None: there was none."""
        return self._info

    def is_ready(self, port: str) -> bool:
        """Whether a call may be sent as it is."""
        return self._info is not None and self._stands() and self._configurator.is_done(port)

    def _stands(self) -> bool:
        return not self._lost and self._connected()

    async def ensure(self, port: str, *, fresh: bool = False) -> adapter_pb2.GetAdapterInfoResponse:
        """Shakes hands and configures where that is needed.

        Args:
            fresh: shake hands in any case, and don't wait long for an adapter that is away.

        Raises:
            UnavailableError: ADAPTER_UNAVAILABLE, or what the channel raises for an adapter that is away.
            FailedPreconditionError: CONTRACT_VERSION_UNSUPPORTED.
            InvalidArgumentError: MANIFEST_INVALID.
        """
        info = self._info
        if info is None or fresh or not self._stands():
            seconds = min(self._wait_seconds, HANDSHAKE_SECONDS) if fresh else self._wait_seconds
            info = await self._greeting.run(lambda: self._shake_hands(seconds))
        await self._configurator.ensure(self._channel, info, port)
        return info

    async def _shake_hands(self, seconds: float) -> adapter_pb2.GetAdapterInfoResponse:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        told = ""
        try:
            if self._at_once is not None:
                try:
                    return self._greeted(await get_info(self._at_once, timeout=min(seconds, HANDSHAKE_SECONDS)))
                except (UnavailableError, DeadlineExceededError) as error:
                    told = f": {error.message}"
            return self._greeted(await get_info(self._channel, timeout=max(0.1, end - loop.time())))
        except DeadlineExceededError as error:
            raise adapter_unavailable(f"{self._adapter} does not answer{told}") from error
        except UnavailableError as error:
            if error.reason in LOST_REASONS - {"ADAPTER_DETACHED"}:
                raise adapter_unavailable(f"{self._adapter} does not answer{told or f': {error.message}'}") from error
            raise

    def _greeted(self, info: adapter_pb2.GetAdapterInfoResponse) -> adapter_pb2.GetAdapterInfoResponse:
        self._info, self._lost = info, False
        return info

    async def failed(self, port: str, error: KitchenError, instance_id: str) -> bool:
        """Notes that the connection broke, or that the adapter has lost its settings. Never sends a call again."""
        if error.reason == NOT_CONFIGURED:
            self._configurator.forget()
        elif error.reason in LOST_REASONS:
            self._lost = True
        return False

    async def close(self) -> None:
        """Closes the channel; the adapter runs on."""
        await self._greeting.cancel()
        await self._configurator.cancel()
        await self._channel.close()


def settings_of(opening: Opening) -> Settings:
    """What a mapping gives its adapter."""
    return Settings(
        where=opening.where,
        adapter=opening.mapping.adapter,
        options=opening.mapping.options,
        secrets=opening.secrets,
        generation=opening.generation,
        wait_seconds=opening.mapping.wait_seconds,
    )


def open_grpc(opening: Opening) -> Opened:
    """The opener of grpc: mappings; connects when first used."""
    mapping = opening.mapping
    channel = connect(
        mapping.target,
        credentials=check_grpc(opening),
        token=opening.token,
        ready_seconds=mapping.wait_seconds,
        server_name=mapping.tls.server_name if mapping.tls is not None else "",
    )
    binding = RemoteAdapter(opening, channel, at_once=channel.at_once(), connected=lambda: channel.connected)
    return Opened(binding=binding)


def check_grpc(opening: Opening) -> grpc.ChannelCredentials | None:
    """The credentials of a grpc: mapping; None: plain text. Raises MANIFEST_INVALID for files that can't be used."""
    tls = opening.mapping.tls
    if tls is None:
        return None
    try:
        return client_credentials(ca=tls.ca, cert=tls.cert, key=tls.key, fields=_TLS_FIELDS)
    except InvalidArgumentError as error:
        raise opening.refused(f"can't be reached: {error.message}") from error
