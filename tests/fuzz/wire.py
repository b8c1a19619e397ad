"""Requests as trees of wire fields: what a generated message can't hold (wrong wire types, broken lengths) fits too.

Values that only a running server knows, such as a session's id, are named (Ref) and filled in when the bytes are made,
so that one seed gives one list of trees whatever ids the server hands out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

VARINT, FIXED64, LENGTH, GROUP_START, GROUP_END, FIXED32 = range(6)
_UINT64 = 2**64 - 1
# Fields many times over in fields many times over would fill this machine before they reach the other one.
_MOST_BYTES = 40 * 1024 * 1024


@dataclass(frozen=True)
class Ref:
    """A value of the world under test: `kind` names the pool, `index` counts back from its newest entry."""

    kind: str
    index: int = 0


@dataclass(frozen=True)
class Big:
    """`size` times the same bytes: cheap to draw, to shrink and to print."""

    data: bytes
    size: int


@dataclass(frozen=True)
class Field:
    """One field: its number, its wire type, and the value in that type's form."""

    number: int
    wire: int
    value: Value


@dataclass(frozen=True)
class Times:
    """A field many times over."""

    field: Field
    count: int


@dataclass(frozen=True)
class Nest:
    """Fields inside each other, from the outermost in, `depth` times over."""

    path: tuple[int, ...]
    depth: int
    group: bool = False
    inner: bytes = b""


@dataclass(frozen=True)
class Message:
    """Fields in the order of their bytes; bytes among them stand for themselves."""

    parts: tuple[Field | Times | Nest | bytes, ...] = ()


@dataclass(frozen=True)
class Damaged:
    """A frame whose bytes were cut and changed; places are thousandths of its length, masks say which bits flip."""

    frame: Message | Ref
    cut: int | None = None
    flips: tuple[tuple[int, int], ...] = ()
    tail: bytes = b""


Value = int | bytes | Big | Ref | Message
Frame = Message | Damaged | Big | Ref | bytes
Resolve = Callable[[Ref], "int | bytes"]


def varint(value: int) -> bytes:
    """An unsigned or two's complement number of at most 64 bits."""
    value &= _UINT64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, wire: int) -> bytes:
    """A field's key."""
    return varint(number << 3 | wire)


def encode(frame: Frame, resolve: Resolve) -> bytes:
    """The bytes of a frame."""
    match frame:
        case bytes():
            return frame
        case Big():
            return frame.data * frame.size
        case Ref():
            value = resolve(frame)
            return value if isinstance(value, bytes) else str(value).encode()
        case Message():
            return b"".join(_part(part, resolve) for part in frame.parts)
        case Damaged():
            data = bytearray(encode(frame.frame, resolve))
            for at, mask in frame.flips:
                if data:
                    data[at * len(data) // 1000 % len(data)] ^= mask
            if frame.cut is not None:
                del data[frame.cut * len(data) // 1000 :]
            return bytes(data) + frame.tail


def _part(part: Field | Times | Nest | bytes, resolve: Resolve) -> bytes:
    match part:
        case bytes():
            return part
        case Field():
            return _field(part, resolve)
        case Times():
            data = _field(part.field, resolve)
            return data * min(part.count, _MOST_BYTES // len(data))
        case Nest():
            return _nest(part)


def _field(field: Field, resolve: Resolve) -> bytes:
    value = field.value
    if isinstance(value, Ref):
        value = resolve(value)
    if isinstance(value, Message | Big):
        value = encode(value, resolve)
    return tag(field.number, field.wire) + payload(field.wire, value)


def payload(wire: int, value: int | bytes) -> bytes:
    """A value in a wire type's form; a number that the type can't hold loses its upper bits."""
    if wire == LENGTH:
        data = value if isinstance(value, bytes) else str(value).encode()
        return varint(len(data)) + data
    if isinstance(value, bytes):
        return value
    match wire:
        case 0:
            return varint(value)
        case 1:
            return struct.pack("<Q", value & _UINT64)
        case 5:
            return struct.pack("<I", value & 0xFFFFFFFF)
        case _:
            return b""


def _nest(nest: Nest) -> bytes:
    if nest.group:
        opened = b"".join(tag(number, GROUP_START) for number in nest.path)
        closed = b"".join(tag(number, GROUP_END) for number in reversed(nest.path))
        return opened * nest.depth + nest.inner + closed * nest.depth
    # From the inside out, the pieces collected in reverse: joining them once keeps deep nests cheap.
    pieces, size = [nest.inner], len(nest.inner)
    for number in tuple(reversed(nest.path)) * nest.depth:
        head = tag(number, LENGTH) + varint(size)
        pieces.append(head)
        size += len(head)
    return b"".join(reversed(pieces))


def double(value: float) -> int:
    """The bits of a float64."""
    return struct.unpack("<Q", struct.pack("<d", value))[0]


def float32(value: float) -> int:
    """The bits of a float32."""
    return struct.unpack("<I", struct.pack("<f", value))[0]
