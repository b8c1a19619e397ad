"""Requests that break exactly one of their proto's constraints, made from valid ones."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from crucible.type.v1 import constraints_pb2
from crucible_kit.constraints import DEFAULT_MAX_CHARACTERS, field_rule

_UNKNOWN_ENUM = 2_000_000_011
_FORMATS = {
    constraints_pb2.FieldConstraints.FORMAT_IDENTIFIER: "x",
    constraints_pb2.FieldConstraints.FORMAT_UUID: "00000000-0000-4000-8000-000000000000",
    constraints_pb2.FieldConstraints.FORMAT_SHA256: "0" * 64,
    constraints_pb2.FieldConstraints.FORMAT_URI: "test:x",
}
_NOT_MATCHING = (" ", "~", "not one", "/", "..", "\u00e9", "0")
# One of them matches every pattern so far.
_TEXTS = ("x", "xxx")
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)


class Rule(Enum):
    """A kind of constraint."""

    REQUIRED = "required"
    MIN = "min"
    MAX = "max"
    MAX_LEN = "max_len"
    MAX_ITEMS = "max_items"
    PATTERN = "pattern"
    FORMAT = "format"
    ENUM = "enum"


@dataclass(frozen=True, kw_only=True)
class Malformed:
    """A request that breaks one rule.

    Attributes:
        rule: the rule.
        path: of the field, such as points[0].name.
        field: name of the field alone.
        problem: what is wrong, such as `is -1, at least 0 is allowed`.
        request: the whole request.
    """

    rule: Rule
    path: str
    field: str
    problem: str
    request: Message


def malformed(valid: Message, rule: Rule) -> Iterator[Malformed]:
    """Requests that break a rule, one for each field that has it. Fields that a valid request leaves out are set for
    it, so that what is inside them is reached.
    """
    yield from _broken(valid, valid.DESCRIPTOR, (), "", rule, frozenset())


def filled(descriptor: Descriptor) -> Any:
    """A small message that breaks no rule: what is required is set, and nothing else."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        rule = field_rule(field)
        if rule.required or (rule.HasField("min") and rule.min > 0 and not field.has_presence):
            _set(message, field, _value(field))
    return message


def _broken(
    root: Message, descriptor: Any, steps: tuple[Any, ...], path: str, rule: Rule, outer: frozenset[str]
) -> Iterator[Malformed]:
    """`steps` lead from the root to the message at `path`, which lies within messages of the types `outer`."""
    within = outer | {descriptor.full_name}
    for field in descriptor.fields:
        for value, problem in _breaking(field, rule):
            request = _copy(root)
            message = _at(request, steps)
            where = _set(message, field, value)
            yield Malformed(
                rule=rule, path=f"{path}{field.name}{where}", field=field.name, problem=problem, request=request
            )
        target = _nested(field)
        # Messages may hold their own kind without end.
        if target is None or target.full_name in within:
            continue
        base = _copy(root)
        where, step = _ensure(_at(base, steps), field, target)
        yield from _broken(base, target, (*steps, step), f"{path}{field.name}{where}.", rule, within)


def _copy(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _at(root: Message, steps: tuple[Any, ...]) -> Any:
    message: Any = root
    for step in steps:
        message = step(message)
    return message


def _nested(field: FieldDescriptor) -> Descriptor | None:
    """The message type inside a field whose own fields have rules; of a map, of its values."""
    target = field.message_type
    if target is not None and target.GetOptions().map_entry:
        target = target.fields_by_name["value"].message_type
    return target if target is not None and target.full_name.startswith("crucible.") else None


def _ensure(message: Any, field: FieldDescriptor, target: Descriptor) -> tuple[str, Any]:
    """Makes the field hold at least one message; where that is in the path, and how to get there."""
    name = field.name
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entries = getattr(message, name)
        if not entries:
            entries["x"].CopyFrom(filled(target))
        key = sorted(entries)[0]
        return f"[{key!r}]", lambda parent: getattr(parent, name)[key]
    if field.is_repeated:
        if not getattr(message, name):
            getattr(message, name).append(filled(target))
        return "[0]", lambda parent: getattr(parent, name)[0]
    if not message.HasField(name):
        getattr(message, name).CopyFrom(filled(target))
        getattr(message, name).SetInParent()
    return "", lambda parent: getattr(parent, name)


def _breaking(field: FieldDescriptor, wanted: Rule) -> Iterator[tuple[Any, str]]:
    """Values of a field, as `_set` takes them, that break the rule; none where the field has no such rule."""
    rule = field_rule(field)
    kind = _element(field)
    match wanted:
        case Rule.REQUIRED if rule.required:
            yield None, "is absent or empty"
        case Rule.MAX_ITEMS if rule.HasField("max_items"):
            yield _Many(rule.max_items + 1), f"has {rule.max_items + 1} entries, at most {rule.max_items} are allowed"
        case Rule.MIN if rule.HasField("min"):
            yield from _below(kind, rule.min)
        case Rule.MAX if rule.HasField("max"):
            yield from _above(kind, rule.max)
        case Rule.ENUM if kind.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
            yield _UNKNOWN_ENUM, f"is {_UNKNOWN_ENUM}, which is no value of the enum"
        case Rule.MAX_LEN:
            yield from _too_long(kind, rule)
            if _has_text_keys(field):
                limit = rule.max_len if rule.HasField("max_len") else DEFAULT_MAX_CHARACTERS
                yield _Keyed("x" * (limit + 1)), f"has a key of {limit + 1} characters, at most {limit} are allowed"
        case Rule.PATTERN if rule.pattern:
            yield from (
                (text, f"is {text!r}, which does not match {rule.pattern}")
                for text in _NOT_MATCHING
                if not re.fullmatch(rule.pattern, text)
            )
        case Rule.FORMAT if rule.format in _FORMATS:
            name = constraints_pb2.FieldConstraints.Format.Name(rule.format)
            yield "not one", f"is 'not one', which is no {name}"


def _below(kind: FieldDescriptor, least: float) -> Iterator[tuple[Any, str]]:
    if kind.cpp_type in _FLOATS:
        yield least - 1.0, f"is {least - 1.0}, at least {least:g} is allowed"
        yield math.nan, "is NaN"
    elif kind.cpp_type in _INTEGERS and int(least) - 1 >= _INTEGERS[kind.cpp_type][0]:
        yield int(least) - 1, f"is {int(least) - 1}, at least {least:g} is allowed"


def _above(kind: FieldDescriptor, most: float) -> Iterator[tuple[Any, str]]:
    if kind.cpp_type in _FLOATS:
        yield most + 1.0, f"is {most + 1.0}, at most {most:g} is allowed"
        yield math.inf, "is infinite"
    elif kind.cpp_type in _INTEGERS and int(most) + 1 <= _INTEGERS[kind.cpp_type][1]:
        yield int(most) + 1, f"is {int(most) + 1}, at most {most:g} is allowed"


def _too_long(kind: FieldDescriptor, rule: constraints_pb2.FieldConstraints) -> Iterator[tuple[Any, str]]:
    if kind.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        return
    if kind.type == FieldDescriptor.TYPE_BYTES:
        if rule.HasField("max_len"):
            yield bytes(rule.max_len + 1), f"has {rule.max_len + 1} bytes, at most {rule.max_len} are allowed"
        return
    limit = rule.max_len if rule.HasField("max_len") else DEFAULT_MAX_CHARACTERS
    yield "x" * (limit + 1), f"has {limit + 1} characters, at most {limit} are allowed"


@dataclass(frozen=True)
class _Many:
    """So many entries."""

    count: int


@dataclass(frozen=True)
class _Keyed:
    """One entry of a map, under this key."""

    key: str


def _has_text_keys(field: FieldDescriptor) -> bool:
    target = field.message_type
    if target is None or not target.GetOptions().map_entry:
        return False
    return target.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING


def _element(field: FieldDescriptor) -> FieldDescriptor:
    """What one entry is; of a map, its value."""
    target = field.message_type
    if target is not None and target.GetOptions().map_entry:
        return target.fields_by_name["value"]
    return field


def _value(field: FieldDescriptor) -> Any:
    """A value of one entry that breaks no rule."""
    rule, kind = field_rule(field), _element(field)
    if kind.message_type is not None:
        return filled(kind.message_type)
    if kind.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return 1
    if kind.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if kind.cpp_type in _FLOATS or kind.cpp_type in _INTEGERS:
        value = max(1.0, rule.min) if not rule.HasField("max") else min(max(1.0, rule.min), rule.max)
        return value if kind.cpp_type in _FLOATS else int(value)
    if kind.type == FieldDescriptor.TYPE_BYTES:
        return b"\0\0\0\0"
    if rule.format in _FORMATS:
        return _FORMATS[rule.format]
    return next(text for text in _TEXTS if re.fullmatch(rule.pattern or "x", text))


def _set(message: Any, field: FieldDescriptor, value: Any) -> str:
    """Sets a field to one value, to many entries, to one under a key, or to nothing (None); answers where the value is
    in the path.
    """
    name = field.name
    if value is None:
        message.ClearField(name)
        return ""
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    if isinstance(value, _Many):
        each = _value(field)
        message.ClearField(name)
        if is_map:
            for number in range(value.count):
                _put(getattr(message, name), f"x{number}", each)
        else:
            getattr(message, name).extend([each] * value.count)
        return ""
    if isinstance(value, _Keyed):
        message.ClearField(name)
        _put(getattr(message, name), value.key, _value(field))
        return ""
    if is_map:
        _put(getattr(message, name), "x", value)
        return "['x']"
    if field.is_repeated:
        message.ClearField(name)
        getattr(message, name).append(value)
        return "[0]"
    if isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
        getattr(message, name).SetInParent()
    else:
        setattr(message, name, value)
    return ""


def _put(entries: Any, key: str, value: Any) -> None:
    if isinstance(value, Message):
        entries[key].CopyFrom(value)
    else:
        entries[key] = value
