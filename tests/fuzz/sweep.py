"""Every field once with each value that it should not have, the rest of the request as the contract wants it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.fuzz import values
from tests.fuzz.calls import Call, Method
from tests.fuzz.messages import Maker, stream, wire_type
from tests.fuzz.wire import LENGTH, Big, Field, Frame, Message, Value


class _Usual(Maker):
    """The first choice everywhere, with every optional field set."""

    def __init__(self) -> None:
        super().__init__(lambda _: 0, odd=0)

    def chance(self, percent: int) -> bool:
        return percent >= 40


def sweep(methods: Sequence[Method]) -> Iterator[Call]:
    """One call for each field of each method and each odd value of it."""
    for method in methods:
        if method.request is None:
            continue
        frames = stream(_Usual(), method.request) if method.client_streaming else [_Usual().message(method.request)]
        yield Call(method, tuple(frames))
        first = _Usual().message(method.request) if not isinstance(frames[0], Message) else frames[0]
        for odd in _variants(first, method.request):
            yield Call(method, (odd, *frames[1:]))


def _variants(message: Message, descriptor: Descriptor) -> Iterator[Frame]:
    """The message with one field missing, or with one odd value, at any depth."""
    for index, part in enumerate(message.parts):
        if not isinstance(part, Field):
            continue
        yield Message(message.parts[:index] + message.parts[index + 1 :])
        field = descriptor.fields_by_number[part.number]
        for value in _odd_values(field, part.value):
            yield Message((*message.parts[:index], replace(part, value=value), *message.parts[index + 1 :]))


def _odd_values(field: FieldDescriptor, value: Value) -> Iterator[Value]:
    if isinstance(value, Message) and field.message_type is not None:
        for odd in _variants(value, field.message_type):
            assert isinstance(odd, Message)
            yield odd
        return
    yield from values.of_meaning(field, odd=True)
    if field.name in values.ONLY_ODD_MEANINGS:
        return
    if field.type == FieldDescriptor.TYPE_STRING:
        limit = values.rule(field).max_len or 4096
        yield from (*values.ODD_STRINGS, *values.NOT_UTF8, Big(b"a", limit), Big(b"a", limit + 1))
    elif field.type == FieldDescriptor.TYPE_BYTES:
        yield from (b"", b"\xff", Big(b"\x00", 1000), Big(b"\xff", 300_001))
    elif wire_type(field) != LENGTH:
        yield from _odd_numbers(field)


def _odd_numbers(field: FieldDescriptor) -> Sequence[Any]:
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return values.floats(field, odd=True)
    return values.whole_numbers(field, odd=True)
