"""Checks a message against the (crucible.type.v1.field) options of its proto, and for fields that its reader lacks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from crucible.type.v1 import constraints_pb2
from crucible_kit.errors import FieldViolation, InvalidArgumentError

DEFAULT_MAX_CHARACTERS = 4096
"""Of a string whose field says nothing."""
# Nobody reads more of them, and a message may break its rules a million times.
_MAX_VIOLATIONS = 16
# 32 MiB hold millions of messages of two bytes: looking at each would take minutes.
MAX_NESTED_MESSAGES = 512 * 1024
# To name one of the unknown fields, protobuf lists all of a message: a million of them stops every thread for seconds.
_MANY_UNKNOWN_BYTES = 64 * 1024
_FORMATS = {
    constraints_pb2.FieldConstraints.FORMAT_IDENTIFIER: (
        re.compile(r"[a-z0-9][a-z0-9._-]{0,62}"),
        "must be a lower-case identifier of at most 63 letters, digits, '-', '_' or '.', such as run-7",
    ),
    constraints_pb2.FieldConstraints.FORMAT_UUID: (
        re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"),
        "must be a UUID such as 2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11",
    ),
    constraints_pb2.FieldConstraints.FORMAT_SHA256: (re.compile(r"[0-9a-f]{64}"), "must be 64 lower-case hex digits"),
    constraints_pb2.FieldConstraints.FORMAT_URI: (
        re.compile(r"[a-z][a-z0-9+.-]*:\S+"),
        "must be a URI with a scheme, such as blob://bucket/key",
    ),
}
# JSON as messages: nothing is asked of it but that it is JSON.
_JSON = frozenset({"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"})
_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_FLOAT,
    FieldDescriptor.CPPTYPE_DOUBLE,
}


class Findings(list[FieldViolation]):
    """What is wrong with a message, and how many messages inside it were looked at."""

    nested = 0

    @property
    def full(self) -> bool:
        """Whether enough was found."""
        return len(self) >= _MAX_VIOLATIONS


# A check of one present value; returns what is wrong with it, or None.
ValueCheck = Callable[[Any], str | None]
# A check of one message at a path; appends what it finds.
MessageCheck = Callable[[Message, str, Findings], None]


def check_message(message: Message) -> None:
    """Raises INVALID_ARGUMENT: FIELD_INVALID with the paths of the fields that break a constraint, the first 16 of
    them, or MESSAGE_TOO_COMPLEX for a message of more than MAX_NESTED_MESSAGES messages.
    """
    violations = Findings()
    _message_check(message.DESCRIPTOR)(message, "", violations)
    if violations:
        shown = "; ".join(f"{each.field}: {each.description}" for each in violations[:5])
        raise InvalidArgumentError(
            shown, reason="FIELD_INVALID", metadata={"field": violations[0].field}, fields=violations
        )


def check_no_unknown_fields(message: Message) -> None:
    """Raises INVALID_ARGUMENT FIELD_UNKNOWN when a field is set that this reader's proto lacks, at any depth."""
    if message.ByteSize() > _MANY_UNKNOWN_BYTES:
        known = type(message)()
        known.CopyFrom(message)
        known.DiscardUnknownFields()
        unknown_bytes = message.ByteSize() - known.ByteSize()
        if not unknown_bytes:
            return
        if unknown_bytes > _MANY_UNKNOWN_BYTES:
            raise _field_unknown(message, "", f"the request holds {unknown_bytes} bytes of unknown fields")
    found = _find_unknown(message, "")
    if found:
        raise _field_unknown(message, found, f"{found}: unknown field")


def _field_unknown(message: Message, path: str, problem: str) -> InvalidArgumentError:
    name = message.DESCRIPTOR.full_name
    return InvalidArgumentError(
        f"{problem} of {name}; this server's contract does not have it: leave it out or use a server that knows it",
        reason="FIELD_UNKNOWN",
        metadata={"field": path, "message": name},
        fields=[FieldViolation(path, "unknown field")] if path else (),
    )


def _find_unknown(message: Message, path: str) -> str | None:
    unknown = UnknownFieldSet(message)
    if len(unknown):
        return f"{path}#{unknown[0].field_number}"
    if not _may_nest(message.DESCRIPTOR):
        return None
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.full_name.startswith("google.protobuf."):
            continue
        for child, child_path in _children(field, value, path):
            found = _find_unknown(child, f"{child_path}.")
            if found:
                return found
    return None


@cache
def _may_nest(descriptor: Descriptor) -> bool:
    return any(field.message_type is not None for field in descriptor.fields)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _map_entry(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None
    return field.message_type


def _map_value(field: FieldDescriptor) -> FieldDescriptor:
    return _map_entry(field).fields_by_name["value"]


def _children(field: FieldDescriptor, value: Any, path: str) -> Iterator[tuple[Message, str]]:
    """The messages inside a set field, each with its path."""
    name = f"{path}{field.name}"
    if _is_map(field):
        if _map_value(field).message_type is not None:
            for key in sorted(value):
                yield value[key], f"{name}[{key!r}]"
    elif field.is_repeated:
        for index, each in enumerate(value):
            yield each, f"{name}[{index}]"
    else:
        yield value, name


@cache
def _message_check(descriptor: Descriptor) -> MessageCheck:
    """Compiles a message's options, its children's too, into one function. Recursive messages compile lazily."""
    if descriptor.full_name in _JSON:
        checks = [_json_number] if descriptor.full_name == "google.protobuf.Value" else []
    else:
        checks = [check for field in descriptor.fields for check in _field_checks(field)]
    nested = [(field, _item_limit(field)) for field in descriptor.fields if _has_checked_children(field)]

    def check(message: Message, path: str, out: Findings) -> None:
        for each in checks:
            each(message, path, out)
        for field, limit in nested:
            if not field.is_repeated and not message.HasField(field.name):
                continue
            value = getattr(message, field.name)
            # What is too long has been found: there may be millions of entries to look at.
            if limit is not None and len(value) > limit:
                continue
            for child, child_path in _children(field, value, path):
                if out.full:
                    return
                out.nested += 1
                if out.nested > MAX_NESTED_MESSAGES:
                    raise _too_complex(child_path)
                _message_check(child.DESCRIPTOR)(child, f"{child_path}.", out)

    return check


def _too_complex(path: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{path}: the request holds more than {MAX_NESTED_MESSAGES} messages inside it: send it in several calls",
        reason="MESSAGE_TOO_COMPLEX",
        metadata={"field": path, "max_messages": MAX_NESTED_MESSAGES},
    )


def _item_limit(field: FieldDescriptor) -> int | None:
    """Most entries that a repeated or map field may have; None: any number, or it is a single one."""
    rule = field_rule(field)
    return rule.max_items if field.is_repeated and rule.HasField("max_items") else None


def _has_checked_children(field: FieldDescriptor) -> bool:
    target = field.message_type
    if target is not None and _is_map(field):
        target = _map_value(field).message_type
    return target is not None and (target.full_name.startswith("crucible.") or target.full_name in _JSON)


def field_rule(field: FieldDescriptor) -> constraints_pb2.FieldConstraints:
    """The (crucible.type.v1.field) option of a field; an empty one where it has none."""
    option: Any = constraints_pb2.field  # an extension's handle, which its stub calls a FieldDescriptor
    options = field.GetOptions()
    return options.Extensions[option] if options.HasExtension(option) else constraints_pb2.FieldConstraints()


def _field_checks(field: FieldDescriptor) -> list[MessageCheck]:
    rule = field_rule(field)
    checks: list[MessageCheck] = []
    if rule.required:
        checks.append(_required(field))
    limit = _item_limit(field)
    if limit is not None:
        checks.append(_max_items(field, limit))
    if _is_map(field) and _map_entry(field).fields_by_name["key"].type == FieldDescriptor.TYPE_STRING:
        checks.append(_map_keys(field, rule.max_len if rule.HasField("max_len") else DEFAULT_MAX_CHARACTERS))
    value_check = _value_check(field, rule)
    if value_check is not None:
        checks.append(_each_value(field, value_check))
    return checks


def _json_number(message: Any, path: str, out: Findings) -> None:
    """A google.protobuf.Value holds any double, but JSON has neither NaN nor infinities: no adapter could read it."""
    if not math.isfinite(message.number_value):
        out.append(
            FieldViolation(f"{path}number_value", f"is {message.number_value}; JSON has no such number: send a text")
        )


def _required(field: FieldDescriptor) -> MessageCheck:
    name = field.name

    def check(message: Message, path: str, out: Findings) -> None:
        present = message.HasField(name) if field.has_presence else bool(getattr(message, name))
        if not present:
            out.append(FieldViolation(f"{path}{name}", "required, but absent or empty"))

    return check


def _max_items(field: FieldDescriptor, limit: int) -> MessageCheck:
    def check(message: Message, path: str, out: Findings) -> None:
        count = len(getattr(message, field.name))
        if count > limit:
            out.append(FieldViolation(f"{path}{field.name}", f"has {count} entries, at most {limit} are allowed"))

    return check


def _map_keys(field: FieldDescriptor, limit: int) -> MessageCheck:
    def check(message: Message, path: str, out: Findings) -> None:
        for key in getattr(message, field.name):
            if out.full:
                return
            if len(key) > limit:
                problem = f"its key has {len(key)} characters, at most {limit} are allowed"
                out.append(FieldViolation(f"{path}{field.name}[{key[:64]!r}]", problem))

    return check


def _each_value(field: FieldDescriptor, value_check: ValueCheck) -> MessageCheck:
    name, is_map, limit = field.name, _is_map(field), _item_limit(field)

    def check(message: Message, path: str, out: Findings) -> None:
        if field.is_repeated:
            values = getattr(message, name)
            if limit is not None and len(values) > limit:
                return
            for key, value in values.items() if is_map else enumerate(values):
                problem = value_check(value)
                if problem:
                    out.append(FieldViolation(f"{path}{name}[{key!r}]", problem))
                    if out.full:
                        return
        elif not field.has_presence or message.HasField(name):
            problem = value_check(getattr(message, name))
            if problem:
                out.append(FieldViolation(f"{path}{name}", problem))

    return check


def _value_check(field: FieldDescriptor, rule: constraints_pb2.FieldConstraints) -> ValueCheck | None:
    kind = field
    if _is_map(field):
        kind = _map_value(field)
    if kind.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _bytes_check(rule) if kind.type == FieldDescriptor.TYPE_BYTES else _string_check(rule)
    if kind.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return _enum_check(kind)
    if kind.cpp_type in _NUMBERS and (rule.HasField("min") or rule.HasField("max")):
        return _number_check(rule)
    return None


def _string_check(rule: constraints_pb2.FieldConstraints) -> ValueCheck:
    limit = rule.max_len if rule.HasField("max_len") else DEFAULT_MAX_CHARACTERS
    pattern = re.compile(rule.pattern) if rule.pattern else None
    syntax = _FORMATS.get(rule.format)

    def check(value: str) -> str | None:
        if len(value) > limit:
            return f"has {len(value)} characters, at most {limit} are allowed"
        if value and pattern is not None and not pattern.fullmatch(value):
            return f"{value!r} must match {pattern.pattern}"
        if value and syntax is not None and not syntax[0].fullmatch(value):
            return f"{value!r} {syntax[1]}"
        return None

    return check


def _bytes_check(rule: constraints_pb2.FieldConstraints) -> ValueCheck | None:
    if not rule.HasField("max_len"):
        return None
    limit = rule.max_len

    def check(value: bytes) -> str | None:
        return f"has {len(value)} bytes, at most {limit} are allowed" if len(value) > limit else None

    return check


def _enum_check(field: FieldDescriptor) -> ValueCheck:
    enum = field.enum_type
    assert enum is not None
    known = {each.number for each in enum.values}

    def check(value: int) -> str | None:
        return None if value in known else f"{value} is not a value of {enum.full_name}"

    return check


def _number_check(rule: constraints_pb2.FieldConstraints) -> ValueCheck:
    low = rule.min if rule.HasField("min") else -math.inf
    high = rule.max if rule.HasField("max") else math.inf

    def check(value: float) -> str | None:
        if math.isnan(value):
            return "is NaN; a number is required"
        if value < low:
            return f"is {value}, must be at least {_number(low)}"
        if value > high:
            return f"is {value}, must be at most {_number(high)}"
        return "is infinite; a finite number is required" if math.isinf(value) else None

    return check


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else str(value)
