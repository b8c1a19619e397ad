"""Ports that the manifest maps to attach:NAME."""

from __future__ import annotations

from crucible.adapter.v1 import adapter_pb2
from crucible_kitchen.ports.attachments import AttachedPort, Attachments
from crucible_kitchen.ports.binding import Kind, Opened, Opening
from crucible_kitchen.ports.remote import RemoteAdapter


class AttachedAdapter(RemoteAdapter):
    """The adapter that has attached under a port's name: whichever holds it gets its settings before it gets calls."""

    def __init__(self, opening: Opening, port: AttachedPort) -> None:
        super().__init__(opening, port.channel, connected=self._is_the_same)
        self._port = port

    @property
    def info(self) -> adapter_pb2.GetAdapterInfoResponse | None:
        """The handshake of the adapter that is attached; None: there is none."""
        return self._port.info

    def _is_the_same(self) -> bool:
        now = self._port.info
        return now is not None and self._info is not None and now.instance_id == self._info.instance_id

    async def close(self) -> None:
        """Takes the port from the name."""
        await super().close()
        await self._port.close()


def attach_kind(attachments: Attachments) -> Kind:
    """The kind attach: of a server where adapters come in as `attachments`."""

    def open_attached(opening: Opening) -> Opened:
        port = attachments.add(
            opening.port,
            opening.mapping.target,
            token=opening.token,
            wait_seconds=opening.mapping.wait_seconds,
            where=opening.where,
        )
        return Opened(binding=AttachedAdapter(opening, port))

    return Kind(open=open_attached, check=lambda opening: None)
