"""The Elixir adapter's protobuf codec and constraint checks against Python's, and its schema against the protos."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from crucible_kit.constraints import check_message, check_no_unknown_fields
from crucible_kit.errors import InvalidArgumentError
from scripts import generate_elixir_schema
from tests.contract.elixir import FOLDER, compiled, needs_elixir

ROUNDS = 20
# From so many findings on, neither side looks for all.
ENOUGH = 16
STRINGS = (
    "",
    "a",
    "owner/name",
    "wörld \U0001f600",
    "run-7",
    "x" * 300,
    "q'uote",
    "e\u0301" * 200,  # 400 characters that look like 200
    "2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11",
)
BYTES = (b"", b"\0", b"\x01\x00\x00\x00" * 3, bytes(range(256)))
DOUBLES = (0.0, -0.0, 1.5, -2.0, 1e308, 5e-324, float("inf"), -float("inf"), float("nan"))
INTEGERS = (
    0,
    1,
    -1,
    2,
    63,
    64,
    127,
    128,
    300,
    65536,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
)
_SIGNED_64 = ("TYPE_INT64", "TYPE_SINT64", "TYPE_SFIXED64")


def test_schema_is_that_of_the_protos():
    assert generate_elixir_schema.SCHEMA.read_text() == generate_elixir_schema.render(), "run `make generate`"


@needs_elixir
def test_exunit_and_no_warnings():
    strict = ["compile", "--all-warnings", "--warnings-as-errors"]
    done = subprocess.run(
        ["mix", "do", *strict, "+", "format", "--check-formatted", "+", "test", "--warnings-as-errors"],
        cwd=FOLDER,
        env={**os.environ, "MIX_ENV": "test"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Maker:
    """Draws messages: most fields set, any value that the type holds."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        message = message_factory.GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self.random.random() < (0.7 if depth < 3 else 0.2):
                self._set(message, field, depth)
        return message

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        held: Any = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            for _ in range(self.random.randint(1, 3)):
                if value.message_type is None:
                    held[self._scalar(key)] = self._scalar(value)
                else:
                    held[self._scalar(key)].CopyFrom(self.message(value.message_type, depth + 1))
        elif field.is_repeated:
            for _ in range(self.random.randint(1, 4)):
                one = self._scalar(field) if field.message_type is None else self.message(field.message_type, depth + 1)
                held.append(one)
        elif field.message_type is not None:
            held.CopyFrom(self.message(field.message_type, depth + 1))
            held.SetInParent()
        else:
            setattr(message, field.name, self._scalar(field))

    def _scalar(self, field: FieldDescriptor) -> Any:
        kind = field.type
        if kind == FieldDescriptor.TYPE_STRING:
            return self.random.choice(STRINGS)
        if kind == FieldDescriptor.TYPE_BYTES:
            return self.random.choice(BYTES)
        if kind in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
            return self.random.choice(DOUBLES if kind == FieldDescriptor.TYPE_DOUBLE else (0.5, -0.0, float("nan")))
        if kind == FieldDescriptor.TYPE_BOOL:
            return self.random.random() < 0.5
        if kind == FieldDescriptor.TYPE_ENUM:
            assert field.enum_type is not None
            return self.random.choice([*(each.number for each in field.enum_type.values), 99, -1])
        name = next(
            each for each in dir(FieldDescriptor) if each.startswith("TYPE_") and getattr(FieldDescriptor, each) == kind
        )
        bits = 64 if "64" in name else 32
        low, high = (
            (0, 2**bits - 1)
            if "UINT" in name or name.startswith("TYPE_FIXED")
            else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
        return self.random.choice([each for each in INTEGERS if low <= each <= high])

    def damaged(self, data: bytes) -> bytes:
        """Bytes cut, overwritten, repeated, or with a field that nobody knows."""
        match self.random.randrange(5):
            case 0:
                return data[: self.random.randrange(len(data) + 1)]
            case 1 if data:
                place = self.random.randrange(len(data))
                return data[:place] + bytes([self.random.randrange(256)]) + data[place + 1 :]
            case 2:
                return data + data
            case 3:
                # varint, length-delimited, group and fixed fields of numbers that no message has
                return (
                    data
                    + b"\x80\x7d\x05"
                    + b"\x82\x7d\x02ab"
                    + b"\x83\x7d\x08\x01\x84\x7d"
                    + b"\x85\x7d\x00\x00\x00\x00"
                )
            case _:
                return data + self.random.randbytes(self.random.randrange(1, 12))


def cases() -> Iterator[tuple[Descriptor, bytes]]:
    maker = Maker(5)
    found = generate_elixir_schema.Collector()
    for service in generate_elixir_schema.SERVICES:
        for method in service.methods:
            found.add(method.input_type)
            found.add(method.output_type)
    for message in generate_elixir_schema.MESSAGES:
        found.add(message)
    for _, descriptor in sorted(found.messages.items()):
        for _ in range(ROUNDS):
            data = maker.message(descriptor).SerializeToString()
            yield descriptor, data
            yield descriptor, maker.damaged(data)


def findings(message: Message) -> list[str]:
    """What Python finds wrong with a message: paths, an unknown field marked."""
    found = []
    try:
        check_message(message)
    except InvalidArgumentError as error:
        found += [each.field for each in error.fields]
    try:
        check_no_unknown_fields(message)
    except InvalidArgumentError as error:
        found.append(f"unknown {error.metadata['field']}")
    return found


def shown(message: Message) -> str:
    """All of a message, in which a NaN is a NaN whatever its bits."""
    return text_format.MessageToString(message, print_unknown_fields=True)


@needs_elixir
def test_bytes_and_findings_are_those_of_python(tmp_path: Path):
    asked = list(cases())
    given, answers = tmp_path / "in", tmp_path / "out"
    given.write_bytes(
        b"".join(
            struct.pack(">I", len(name)) + name + struct.pack(">I", len(data)) + data
            for name, data in ((descriptor.full_name.encode(), data) for descriptor, data in asked)
        )
    )
    command = ["elixir", "-pa", str(compiled()), str(FOLDER / "test" / "reencode.exs"), str(given), str(answers)]
    subprocess.run(command, check=True, timeout=60)
    rest = answers.read_bytes()

    def take() -> bytes:
        nonlocal rest
        (size,) = struct.unpack_from(">I", rest)
        value, rest = rest[4 : 4 + size], rest[4 + size :]
        return value

    read = refused = 0
    for descriptor, data in asked:
        message = message_factory.GetMessageClass(descriptor)()
        status, rest = rest[0], rest[1:]
        try:
            message.ParseFromString(data)
        except DecodeError:
            assert status == 1, (descriptor.full_name, data)
            refused += 1
            continue
        assert status == 0, (descriptor.full_name, data)
        again = message_factory.GetMessageClass(descriptor).FromString(take())
        assert shown(again) == shown(message), data
        theirs, ours = take().decode().splitlines(), findings(message)
        if len(ours) < ENOUGH:
            assert sorted(theirs) == sorted(ours), (descriptor.full_name, data)
        else:
            assert len(theirs) >= ENOUGH
        read += 1
    assert not rest
    assert read > 1000
    assert refused > 100
