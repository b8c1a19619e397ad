"""Requests drawn from descriptors: as the contract wants them, a little off, or nothing like it.

One `draw` of hypothesis runs through everything, so that a failing request shrinks as a whole.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from tests.fuzz import values
from tests.fuzz.wire import (
    FIXED32,
    FIXED64,
    GROUP_END,
    GROUP_START,
    LENGTH,
    VARINT,
    Big,
    Damaged,
    Field,
    Frame,
    Message,
    Nest,
    Ref,
    Times,
    Value,
    double,
    tag,
    varint,
)

Draw = Callable[[st.SearchStrategy[Any]], Any]
Choice = TypeVar("Choice")

MIB = 1024 * 1024
# Around the limits of the run API and of the ports.
HUGE_SIZES = (4 * MIB - 64, 4 * MIB + 1, 31 * MIB, 32 * MIB - 64, 32 * MIB + 1, 40 * MIB)
_MAX_DEPTH = 4
_PERCENT = st.integers(0, 99)
_SMALL_BYTES = st.binary(max_size=40)
_SMALL_TEXT = st.text(max_size=12)
_WIRES = {
    FieldDescriptor.TYPE_DOUBLE: FIXED64,
    FieldDescriptor.TYPE_FIXED64: FIXED64,
    FieldDescriptor.TYPE_SFIXED64: FIXED64,
    FieldDescriptor.TYPE_FLOAT: FIXED32,
    FieldDescriptor.TYPE_FIXED32: FIXED32,
    FieldDescriptor.TYPE_SFIXED32: FIXED32,
    FieldDescriptor.TYPE_STRING: LENGTH,
    FieldDescriptor.TYPE_BYTES: LENGTH,
    FieldDescriptor.TYPE_MESSAGE: LENGTH,
}
_FLOATS = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)


@cache
def _below(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, count - 1)


def wire_type(field: FieldDescriptor) -> int:
    """How a field's values travel, unpacked."""
    return _WIRES.get(field.type, VARINT)


class Maker:
    """Draws the messages of one call.

    Args:
        odd: chance in percent that a field holds what it should not.
    """

    def __init__(self, draw: Draw, odd: int) -> None:
        self.draw = draw
        self.odd = odd
        self._index: int | None = None

    # Choices

    def chance(self, percent: int) -> bool:
        """Whether something rare happens; shrinks to no."""
        return self.draw(_PERCENT) >= 100 - percent

    def pick(self, options: Sequence[Choice]) -> Choice:
        """One of the options; shrinks to the first."""
        return options[self.draw(_below(len(options)))] if len(options) > 1 else options[0]

    def below(self, count: int) -> int:
        """A number from 0."""
        return self.draw(_below(count))

    @property
    def index(self) -> int:
        """Which of the known sessions, runs and so on this call is about; mostly the newest."""
        if self._index is None:
            self._index = self.pick((0, 0, 0, 1, 2))
        return self._index

    # Messages

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """A message's fields."""
        special = _SPECIAL.get(descriptor.full_name)
        if special is not None and not self.chance(self.odd):
            return special(self)
        parts: list[Any] = []
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof is not None and len(oneof.fields) > 1:
                if field is oneof.fields[0] and not self.chance(self.odd):
                    # Deep down the first: messages that hold themselves, such as filters, would never end.
                    chosen = self.pick(oneof.fields) if depth < _MAX_DEPTH else oneof.fields[0]
                    parts += self._set(chosen, depth)
            elif self._wanted(field, depth):
                parts += self._set(field, depth)
        return Message(tuple(parts))

    def _wanted(self, field: FieldDescriptor, depth: int) -> bool:
        if values.rule(field).required or (depth == 0 and field.name == "sequence"):
            return not self.chance(self.odd // 4)
        if field.name in ("hold", "config", "num_samples", "max_tokens", "rank"):
            return not self.chance(self.odd)
        return depth < _MAX_DEPTH and self.chance(45)

    def _set(self, field: FieldDescriptor, depth: int) -> list[Any]:
        """A field, set: as often as it repeats."""
        target = field.message_type
        if target is not None and target.GetOptions().map_entry:
            return self._repeated(field, lambda: self._entry(field, target, depth))
        if field.is_repeated:
            return self._repeated(field, lambda: self._one(field, depth))
        return [self._one(field, depth)]

    def _repeated(self, field: FieldDescriptor, one: Callable[[], Field]) -> list[Any]:
        if self.chance(self.odd // 3):
            limit = values.rule(field).max_items or 4096
            # As many as are allowed can be minutes of honest work.
            most = limit if limit <= 64 or self.chance(2) else 300
            return [Times(one(), self.pick((most, limit + 1, 2 * limit + 3, 0)))]
        return [one() for _ in range(self.pick((1, 1, 2, 3)))]

    def _entry(self, field: FieldDescriptor, entry: Descriptor, depth: int) -> Field:
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        parts = [self._one(key, depth + 1), self._one(value, depth + 1)]
        return Field(field.number, LENGTH, Message(tuple(parts)))

    def _one(self, field: FieldDescriptor, depth: int) -> Field:
        if field.message_type is not None:
            return Field(field.number, LENGTH, self.message(field.message_type, depth + 1))
        return Field(field.number, wire_type(field), self.scalar(field))

    # Single values

    def scalar(self, field: FieldDescriptor) -> Value:
        """A value of a field that holds no message."""
        if self.chance(self.odd):
            return self._odd_scalar(field)
        known = self._known(field)
        if known is not None:
            return known
        if field.type == FieldDescriptor.TYPE_ENUM:
            return self.pick(_enum_numbers(field))
        if field.type == FieldDescriptor.TYPE_STRING:
            return self.pick((b"a", b"b", b"", b"train/loss"))
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self.pick((b"", b"\x01\x00\x00\x00", b"\x02\x00\x00\x00\x05\x00\x00\x00"))
        if field.type in _FLOATS:
            return self.pick(values.floats(field, odd=False))
        return self.pick(values.whole_numbers(field, odd=False))

    def _known(self, field: FieldDescriptor) -> Value | None:
        """What the field means: a value that a friendly client would send."""
        name = field.name
        if name == "request_id":
            assert field.containing_type is not None
            fresh = field.containing_type.name.startswith("Create") and not self.chance(20)
            return Ref("fresh_uuid") if fresh else self.pick(values.UUIDS).encode()
        engine = values.session_pool(field)
        if name in ("session_id", "operation_id") and engine:
            return Ref(f"{engine}_{name.removesuffix('_id')}", self.index)
        if name == "sequence" and engine:
            return Ref(f"{engine}_sequence", self.index)
        options = values.of_meaning(field)
        if not options:
            return None
        value = self.pick(options)
        return Ref(value.kind, self.index) if isinstance(value, Ref) else value

    def _odd_scalar(self, field: FieldDescriptor) -> Value:
        meant = values.of_meaning(field, odd=True)
        if meant and (field.name in values.ONLY_ODD_MEANINGS or self.chance(60)):
            return self.pick(meant)
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._odd_string(field)
        if field.type == FieldDescriptor.TYPE_BYTES:
            limit = values.rule(field).max_len
            sizes = (limit, limit + 1) if limit else (1000, 100_001)
            return self.pick((b"", Big(b"\x00", sizes[0]), Big(b"\xff", sizes[1]), self.draw(_SMALL_BYTES)))
        if field.type in _FLOATS:
            return self.pick(values.floats(field, odd=True))
        return self.pick(values.whole_numbers(field, odd=True))

    def _odd_string(self, field: FieldDescriptor) -> Value:
        match self.below(8):
            case 0:
                return self.draw(_SMALL_TEXT).encode()
            case 1:
                return self.pick(values.NOT_UTF8)
            case 2:
                limit = values.rule(field).max_len or 4096
                return Big(b"a", self.pick((limit, limit + 1)))
            case _:
                return self.pick(values.ODD_STRINGS)

    # Damage

    def damaged(self, message: Message) -> Frame:
        """A message whose bytes break the rules of its type or of the wire."""
        kind = self.below(14)
        parts = list(message.parts)
        inner = [
            (index, part.number, part.value)
            for index, part in enumerate(parts)
            if isinstance(part, Field) and isinstance(part.value, Message)
        ]
        if inner and self.chance(40):
            index, number, value = self.pick(inner)
            frame = self.damaged(value)
            if isinstance(frame, Message):
                parts[index] = Field(number, LENGTH, frame)
                return Message(tuple(parts))
            return frame
        place = self.below(len(parts) + 1)
        match kind:
            case 0 | 1 if parts:
                place %= len(parts)
                parts[place] = self._miswired(parts[place])
            case 2 if parts:
                parts.insert(place, parts[place % len(parts)])
            case 3:
                parts.reverse()
            case 4 if parts:
                del parts[place % len(parts)]
            case 5 | 6:
                parts.insert(place, self._unknown())
            case 7:
                parts.insert(place, self._deep())
            case 8:
                parts.insert(place, self.pick(_GARBAGE))
            case 9:
                parts.insert(place, Field(1 + self.below(4), LENGTH, self.pick(values.NOT_UTF8)))
            case 10:
                return Damaged(message, cut=self.below(1000))
            case 11:
                return Damaged(message, flips=((self.below(1000), 1 << self.below(8)),))
            case 12:
                return Damaged(message, tail=self.draw(_SMALL_BYTES))
            case _:
                parts.insert(place, Field(1 + self.below(8), self.below(8), self.pick(values.UINT64)))
        return Message(tuple(parts))

    def _miswired(self, part: Any) -> Any:
        if not isinstance(part, Field):
            return part
        wire = (part.wire + 1 + self.below(5)) % 6
        value = part.value if not isinstance(part.value, Message) or wire == LENGTH else self.pick((0, 2**64 - 1))
        return Field(part.number, wire, value)

    def _unknown(self) -> Field:
        number = self.pick((99, 15, 1000, 19_000, 2**29 - 1))
        return self.pick(
            (
                Field(number, VARINT, 1),
                Field(number, LENGTH, b"x"),
                Field(number, FIXED64, 1),
                Field(number, FIXED32, 1),
                Field(number, LENGTH, Big(b"x", 100_000)),
            )
        )

    def _deep(self) -> Nest:
        depth = self.pick((2, 30, 99, 101, 5000))
        number = 1 + self.below(10)
        return self.pick(
            (
                Nest((number,), depth),
                Nest((number,), depth, group=True),
                Nest((99,), depth, group=True),
                # A Value in a list in a Value: of the messages of the contract, what may hold itself.
                Nest((5, 1, 2), 1, inner=b""),
                Nest((6, 1), depth),
            )
        )

    def garbage(self) -> Frame:
        """Bytes that were never meant to be a message."""
        return self.pick(
            (self.draw(_SMALL_BYTES), b"", Big(b"\xff", 999), Big(b"\n\x00", 50_000), Big(b"\x12\x02\x0a\x00", 9_999))
        )

    def huge(self, descriptor: Descriptor) -> Frame:
        """A message around a limit of size: a long value, many empty ones, or zeros."""
        size = self.pick(HUGE_SIZES)
        texts = [field for field in descriptor.fields if wire_type(field) == LENGTH]
        number = self.pick(texts).number if texts and self.chance(80) else 99
        parts = list(self.message(descriptor).parts)
        many = Times(Field(number, LENGTH, b""), size // 2)
        return Message((*parts, self.pick((Field(number, LENGTH, Big(b"a", size)), many))))


_GARBAGE = (
    b"\x00",
    b"\xff" * 11,
    b"\x08" + b"\x80" * 12,
    tag(1, LENGTH) + varint(2**31),
    tag(1, LENGTH) + varint(2**63),
    tag(1, GROUP_END),
    tag(1, GROUP_START),
    tag(1, 6),
    tag(1, 7),
    varint(2**35),
)


@cache
def _enum_numbers(field: FieldDescriptor) -> tuple[int, ...]:
    assert field.enum_type is not None
    return tuple(value.number for value in field.enum_type.values)


# Messages whose fields must fit each other.


def _tensor(dtype: int, count: int, data: bytes | Big) -> Message:
    shape = Field(2, VARINT, count)
    return Message((Field(1, VARINT, dtype), shape, Field(3, LENGTH, data)))


def _any_tensor(maker: Maker) -> Message:
    return maker.pick((_tensor(5, 1, values.tokens(3)), _tensor(1, 2, b"\x00\x00\x80\x3f" * 2), _tensor(8, 0, b"")))


def _datum(maker: Maker) -> Message:
    length = maker.pick((3, 1, 17))
    weights = maker.pick(
        (b"\x00\x00\x80\x3f", b"\x00\x00\x80\x3f", b"\x00\x00\x00\x00", b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff")
    )
    token = maker.pick((7, 1, 11))

    def entry(key: bytes, tensor: Message) -> Field:
        return Field(2, LENGTH, Message((Field(1, LENGTH, key), Field(2, LENGTH, tensor))))

    chunk = Field(1, LENGTH, Message((Field(1, LENGTH, Big(values.tokens(token), length)),)))
    return Message(
        (
            Field(1, LENGTH, Message((chunk,))),
            entry(b"target_tokens", _tensor(5, length, Big(values.tokens(token), length))),
            entry(b"weights", _tensor(1, length, Big(weights, length))),
        )
    )


def _loss_function(maker: Maker) -> Message:
    return Message((Field(1, LENGTH, b"cross_entropy"),))


def _duration(maker: Maker) -> Message:
    """Short, so that waiting calls end; the long ones are drawn as odd."""
    return maker.pick((Message((Field(2, VARINT, 10_000_000),)), Message(), Message((Field(2, VARINT, 200_000_000),))))


_CONFIG_VALUES: tuple[Any, ...] = (1, 0, -1, 0.5, 1e300, "x", "", True, None, [], {}, [1, "a"], {"a": {"b": 1}}, 2**53)
CONFIG_KEYS = (
    "model",
    "dataset",
    "eval_dataset",
    "lora_rank",
    "learning_rate",
    "batch_size",
    "max_length",
    "max_steps",
    "num_epochs",
    "warmup_steps",
    "save_every",
    "eval_every",
    "train_on",
    "lr_schedule",
    "sample_prompts",
    "keep_last",
    "start_from",
    "deploy",
    "nope",
    "__class__",
)
# What keeps a run that starts after all small.
SMALL_RUN: dict[str, Any] = {
    "model": "builtin:tiny-qwen3",
    "dataset": "builtin:word-problems#train",
    "eval_dataset": "",
    "batch_size": 2,
    "max_length": 64,
    "max_steps": 1,
    "warmup_steps": 0,
    "eval_at_start": False,
    "sample_prompts": 0,
}


def struct_of(value: dict[str, Any]) -> Message:
    """A google.protobuf.Struct."""
    return Message(
        tuple(
            Field(1, LENGTH, Message((Field(1, LENGTH, key.encode()), Field(2, LENGTH, _value_of(each)))))
            for key, each in value.items()
        )
    )


def _value_of(value: Any) -> Message:
    match value:
        case None:
            field = Field(1, VARINT, 0)
        case bool():
            field = Field(4, VARINT, int(value))
        case int() | float():
            field = Field(2, FIXED64, double(float(value)))
        case str():
            field = Field(3, LENGTH, value.encode())
        case dict():
            field = Field(5, LENGTH, struct_of(value))
        case _:
            field = Field(6, LENGTH, Message(tuple(Field(1, LENGTH, _value_of(each)) for each in value)))
    return Message((field,))


def _config(maker: Maker) -> Message:
    config = dict(SMALL_RUN)
    for _ in range(maker.pick((0, 1, 2))):
        config[maker.pick(CONFIG_KEYS)] = maker.pick(_CONFIG_VALUES)
    if maker.chance(10):
        config[maker.draw(_SMALL_TEXT)] = float(maker.pick(("nan", "inf", "-inf")))
    message = struct_of(config)
    if maker.chance(10):
        deep = Nest((6, 1), maker.pick((3, 40, 60, 3000)))
        entry = Message((Field(1, LENGTH, b"model"), Field(2, LENGTH, Message((deep,)))))
        message = Message((*message.parts, Field(1, LENGTH, entry)))
    return message


_SPECIAL: dict[str, Callable[[Maker], Message]] = {
    "crucible.type.v1.Datum": _datum,
    "crucible.type.v1.Tensor": _any_tensor,
    "crucible.port.training.v1.LossFunction": _loss_function,
    "google.protobuf.Duration": _duration,
    "google.protobuf.Struct": _config,
}


# Client streams: frames that belong together.

_CONTENTS = (b"", b"x", json.dumps({"a": 1}).encode(), bytes(range(256)) * 40)


def _chunks(data: bytes) -> list[tuple[int, bytes]]:
    size = max(1, len(data) // 2)
    return [(offset, data[offset : offset + size]) for offset in range(0, len(data), size)]


def _blob_frames(maker: Maker, request: Descriptor) -> list[Frame]:
    data = maker.pick(_CONTENTS)
    header = Field(1, LENGTH, maker.message(_header_type(request)))
    frames: list[Frame] = [Message((header,))]
    for offset, piece in _chunks(data):
        crc = Field(2, FIXED32, zlib.crc32(piece))
        frames.append(Message((Field(2, LENGTH, Message((Field(1, VARINT, offset), crc, Field(15, LENGTH, piece)))),)))
    digest = sha256(data).hexdigest().encode()
    finish = Message((Field(1, LENGTH, digest), Field(2, VARINT, len(data))))
    return [*frames, Message((Field(3, LENGTH, finish),))]


def _file_frames(maker: Maker, request: Descriptor) -> list[Frame]:
    data = maker.pick(_CONTENTS)
    header = maker.message(_header_type(request))
    right = Field(3, LENGTH, sha256(data).hexdigest().encode())
    if not maker.chance(maker.odd):
        header = Message((*header.parts, right))
    pieces: list[Frame] = [Message((Field(2, LENGTH, piece),)) for _, piece in _chunks(data)]
    return [Message((Field(1, LENGTH, header),)), *pieces]


def _header_type(request: Descriptor) -> Descriptor:
    header = request.fields_by_name["header"].message_type
    assert header is not None
    return header


def _checkpoint_frames(maker: Maker, request: Descriptor) -> list[Frame]:
    return [Ref("upload_frame", index) for index in range(UPLOAD_FRAMES)]


UPLOAD_FRAMES = 6
"""How many frames the world prepares for an upload of a checkpoint; spare ones are empty chunks."""
_STREAMS: dict[str, Callable[[Maker, Descriptor], list[Frame]]] = {
    "crucible.port.blob.v1.WriteBlobRequest": _blob_frames,
    "crucible.port.hub.v1.UploadFileRequest": _file_frames,
    "crucible.port.training.v1.UploadCheckpointRequest": _checkpoint_frames,
}


def stream(maker: Maker, request: Descriptor) -> list[Frame]:
    """The frames of a client stream: in order, or with some lost, repeated, swapped or damaged."""
    make = _STREAMS.get(request.full_name)
    frames: list[Frame] = []
    if make:
        frames = make(maker, request)
    else:
        frames += [maker.message(request) for _ in range(maker.pick((1, 2, 3, 0)))]
    if not maker.chance(2 * maker.odd):
        return frames
    for _ in range(maker.pick((1, 2))):
        place = maker.below(len(frames)) if frames else 0
        match maker.below(7):
            case 0 if frames:
                del frames[place]
            case 1 if frames:
                frames.insert(place, frames[place])
            case 2:
                frames.reverse()
            case 3 if frames:
                frame = frames[place]
                if isinstance(frame, Message):
                    frames[place] = maker.damaged(frame)
                elif isinstance(frame, Ref):
                    frames[place] = Damaged(frame, flips=((maker.below(1000), 1 << maker.below(8)),))
            case 4:
                del frames[place:]
            case 5:
                frames.insert(place, maker.message(request))
            case _:
                frames.insert(place, maker.garbage())
    return frames
