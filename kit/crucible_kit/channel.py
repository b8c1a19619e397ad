"""Channels for the generated stubs that raise KitchenError: to an object in this process, to a gRPC address, and
through a tunnel that an adapter has opened.

Whoever holds a stub can't tell them apart. They check the request against its proto before it leaves.
"""

from __future__ import annotations

from typing import Any, Protocol

from crucible_kit._object_channel import ObjectChannel, ObjectContext
from crucible_kit._remote_channel import (
    DEFAULT_UNARY_TIMEOUT,
    MAX_MESSAGE_BYTES,
    RemoteChannel,
    connect,
    open_channel,
    repeated,
)
from crucible_kit.tunnel_channel import TunnelChannel

__all__ = [
    "DEFAULT_UNARY_TIMEOUT",
    "MAX_MESSAGE_BYTES",
    "Channel",
    "ObjectChannel",
    "ObjectContext",
    "RemoteChannel",
    "TunnelChannel",
    "connect",
    "open_channel",
    "repeated",
]


class Channel(Protocol):
    """What a generated stub asks of a channel; the keywords are grpc's."""

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any: ...
    async def close(self) -> None: ...
