"""What server and workers say to each other: a JSON header and bytes, each with its length before it."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, NamedTuple

_LENGTHS = struct.Struct("!II")
MAX_HEADER_BYTES = 64 * 1024
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024


class Frame(NamedTuple):
    """One message.

    Attributes:
        header: a JSON object.
        payload: a message of the port, or nothing.
    """

    header: dict[str, Any]
    payload: bytes = b""


class FrameError(ValueError):
    """Bytes that are no frame."""


def encode(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """The bytes of a frame."""
    packed = json.dumps(header, sort_keys=True).encode()
    if len(packed) > MAX_HEADER_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
        raise FrameError("a frame is too large")
    return _LENGTHS.pack(len(packed), len(payload)) + packed + payload


class Reader:
    """Cuts a stream of bytes into frames.

    Args:
        max_payload_bytes: more are refused before they are read.
    """

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._max_payload = max_payload_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Frame | None:
        """The frame that the bytes complete, if they do. Raises FrameError."""
        self._buffer += data
        if len(self._buffer) < _LENGTHS.size:
            return None
        header_bytes, payload_bytes = _LENGTHS.unpack_from(self._buffer)
        if header_bytes > MAX_HEADER_BYTES or payload_bytes > self._max_payload:
            raise FrameError(f"a frame of {header_bytes} and {payload_bytes} bytes is too large")
        start, end = _LENGTHS.size + header_bytes, _LENGTHS.size + header_bytes + payload_bytes
        if len(self._buffer) < end:
            return None
        try:
            header = json.loads(self._buffer[_LENGTHS.size : start])
        except (ValueError, RecursionError) as error:
            raise FrameError("a frame's header is no JSON") from error
        if not isinstance(header, dict) or len(self._buffer) > end:
            raise FrameError("a frame's header is no object, or something follows it unasked")
        payload = bytes(self._buffer[start:end])
        self._buffer.clear()
        return Frame(header, payload)


def receive(connection: socket.socket) -> Frame | None:
    """The next frame of a blocking socket; None: the other side is gone."""
    reader = Reader()
    while data := connection.recv(256 * 1024):
        frame = reader.feed(data)
        if frame is not None:
            return frame
    return None
