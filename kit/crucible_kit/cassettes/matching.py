"""Compares a message with a recorded one: placeholders get their values, rules say what counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field

from crucible.type.v1 import tensor_pb2
from crucible_kit.cassettes import placeholders
from crucible_kit.cassettes.fields import is_map, map_value, unpack
from crucible_kit.errors import InvalidArgumentError
from crucible_kit.settings import parse_settings

_SHOWN_CHARACTERS = 80
_ANY = "google.protobuf.Any"
_TENSOR = tensor_pb2.Tensor.DESCRIPTOR.full_name
_FLOATS = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)
_FLOAT_SUFFIX = "_float32"
_FLOAT_TYPES = {
    tensor_pb2.D_TYPE_FLOAT32: "<f4",
    tensor_pb2.D_TYPE_FLOAT64: "<f8",
    tensor_pb2.D_TYPE_FLOAT16: "<f2",
    tensor_pb2.D_TYPE_BFLOAT16: "<u2",
}


class Approximate(BaseModel):
    """Numbers that may differ a little: |expected - got| <= atol + rtol x |expected|."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        description="Which fields: numbers, tensors, and bytes whose names end in _float32. As in Rules.ignore."
    )
    rtol: float = Field(default=1e-4, ge=0, description="Allowed difference relative to the expected number.")
    atol: float = Field(default=1e-6, ge=0, description="Allowed difference beside that.")


class Rules(BaseModel):
    """What a comparison leaves out or takes approximately.

    A path is `[Method/]request.field.field` or `[Method/]response.field`, with the proto's field names, `[3]` for an
    entry of a list and `['key']` for one of a map. `*` stands for anything within a part, `**` for anything.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ignore: list[str] = Field(default_factory=list, description="Fields whose value does not matter, with all in them.")
    approx: list[Approximate] = Field(
        default_factory=list, description="Numbers that may differ a little. The first that fits a path counts."
    )

    def extended(self, other: Rules) -> Rules:
        """These rules and others; these count first."""
        return Rules(ignore=[*self.ignore, *other.ignore], approx=[*self.approx, *other.approx])

    def ignores(self, method: str, path: str) -> bool:
        """Whether the value at a path does not matter. `method` is the method's name without its service."""
        return any(_fits(pattern, method, path) for pattern in self.ignore)

    def tolerance(self, method: str, path: str) -> Approximate | None:
        """How far the number at a path may be off; None: not at all."""
        return next((each for each in self.approx if _fits(each.path, method, path)), None)


class Difference(NamedTuple):
    """One place where a message is not as recorded; `expected` and `got` are short texts."""

    path: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.path}: the recording has {self.expected}, got {self.got}"


def read_rules(path: Path) -> Rules:
    """The rules in a YAML file.

    Raises:
        InvalidArgumentError: RULES_INVALID.
    """
    import yaml  # only recordings with rules of their own need it

    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidArgumentError(f"{path} can't be read as YAML: {error}", reason="RULES_INVALID") from error
    if not isinstance(values, Mapping):
        raise InvalidArgumentError(f"{path} must be a mapping with ignore and approx", reason="RULES_INVALID")
    return parse_settings(Rules, values, where=str(path), reason="RULES_INVALID")


def rules_of(cassette: Path, header_rules: Rules) -> Rules:
    """The rules of a cassette: those of FILE.rules.yaml beside it, where there is one, before those in its header."""
    own = cassette.with_name(f"{cassette.name}.rules.yaml")
    return read_rules(own).extended(header_rules) if own.exists() else header_rules


@cache
def _pattern(rule: str) -> tuple[str, re.Pattern[str]]:
    """The method that a rule is for, empty for all, and what paths it fits."""
    method, separator, path = rule.rpartition("/")
    if not separator:
        path = rule
    done = []
    for token in re.findall(r"\*\*|\*|[^*]+", path):
        if token == "**":
            done.append(".*")
        elif token == "*":
            done.append(r"[^.\[\]]*")
        else:
            done.append(re.escape(token))
    text = "".join(done)
    # A stream's messages are numbered; a rule without a number is for all of them.
    text = re.sub(r"^(request|response)(?!\\\[)", r"\1(?:\\[\\d+\\])?", text)
    # Whatever lies inside is left out with it.
    return method, re.compile(text + r"(?:[.\[].*)?", re.DOTALL)


def _fits(rule: str, method: str, path: str) -> bool:
    wanted, pattern = _pattern(rule)
    return wanted in ("", method) and pattern.fullmatch(path) is not None


class Comparison:
    """Compares messages of one call with its recording, one after another.

    Attributes:
        bindings: values of placeholders, what the messages said about them included.
        found: those that the messages brought.
        differences: what was not as recorded, in the order of the fields.
    """

    def __init__(self, rules: Rules, bindings: Mapping[str, str], method: str, *, keep_going: bool = False) -> None:
        """`keep_going`: look for all differences, not for the first."""
        self._rules = rules
        self._method = method
        self._keep_going = keep_going
        self.bindings = dict(bindings)
        self.found: dict[str, str] = {}
        self.differences: list[Difference] = []

    def compare(self, expected: Message, actual: Message, path: str) -> bool:
        """Compares one message; whether it is as recorded. `path` is what its fields' paths begin with."""
        before = len(self.differences)
        self._message(expected, actual, path)
        return len(self.differences) == before

    def _done(self) -> bool:
        return bool(self.differences) and not self._keep_going

    def _differ(self, path: str, expected: Any, got: Any) -> None:
        self.differences.append(Difference(path, self._shown(expected), self._shown(got)))

    def _shown(self, value: Any) -> str:
        if isinstance(value, str):
            with suppress(placeholders.Unbound):
                value = placeholders.render(value, self.bindings)
        return _short(value)

    def _message(self, expected: Message, actual: Message, path: str) -> None:
        descriptor: Any = expected.DESCRIPTOR
        if descriptor.full_name == _ANY:
            left, right = unpack(expected), unpack(actual)  # type: ignore[arg-type]
            if left is not None and right is not None and left.DESCRIPTOR.full_name == right.DESCRIPTOR.full_name:
                self._message(left, right, path)
                return
        for field in descriptor.fields:
            if self._done():
                return
            self._field(expected, actual, field, f"{path}.{field.name}")

    def _field(self, expected: Message, actual: Message, field: FieldDescriptor, path: str) -> None:
        if self._rules.ignores(self._method, path):
            return
        if field.has_presence:
            here, there = expected.HasField(field.name), actual.HasField(field.name)
            if not here and not there:
                return
            if here != there:
                self._differ(
                    path,
                    _value_of(expected, field) if here else _ABSENT,
                    _value_of(actual, field) if there else _ABSENT,
                )
                return
        left, right = getattr(expected, field.name), getattr(actual, field.name)
        if is_map(field):
            self._map(left, right, map_value(field), path)
        elif field.is_repeated:
            if len(left) != len(right):
                self._differ(path, _Count(len(left)), _Count(len(right)))
                return
            for index, (one, other) in enumerate(zip(left, right, strict=True)):
                self._value(one, other, field, f"{path}[{index}]")
                if self._done():
                    return
        else:
            self._value(left, right, field, path, expected)

    def _map(self, expected: Any, actual: Any, kind: FieldDescriptor, path: str) -> None:
        for key in sorted({*expected, *actual}):
            if self._done():
                return
            place = f"{path}[{key!r}]"
            if self._rules.ignores(self._method, place):
                continue
            if key in expected and key in actual:
                self._value(expected[key], actual[key], kind, place)
            else:
                self._differ(
                    place,
                    expected.get(key, _ABSENT),
                    actual.get(key, _ABSENT),
                )

    def _value(
        self, expected: Any, actual: Any, kind: FieldDescriptor, path: str, around: Message | None = None
    ) -> None:
        if self._rules.ignores(self._method, path):
            return
        if kind.message_type is not None:
            self._message(expected, actual, path)
        elif kind.type == FieldDescriptor.TYPE_STRING:
            self._text(expected, actual, path)
        elif kind.cpp_type in _FLOATS:
            if not self._close(np.float64(expected), np.float64(actual), path):
                self._differ(path, expected, actual)
        elif kind.type == FieldDescriptor.TYPE_BYTES:
            self._data(expected, actual, _element_type(kind, around), path)
        elif expected != actual:
            self._differ(path, expected, actual)

    def _text(self, expected: str, actual: str, path: str) -> None:
        said = placeholders.match(expected, actual, self.bindings)
        if said is None:
            self._differ(path, expected, actual)
            return
        self.found |= said
        self.bindings |= said

    def _data(self, expected: bytes, actual: bytes, element: str, path: str) -> None:
        if expected == actual or (expected.startswith(b"${secret:") and actual):
            return
        if element and len(expected) == len(actual) and len(expected) % np.dtype(element).itemsize == 0:
            left, right = _numbers(expected, element), _numbers(actual, element)
            tolerance = self._rules.tolerance(self._method, path)
            if tolerance is not None:
                apart = np.flatnonzero(~_is_close(left, right, tolerance))
                if apart.size:
                    at = int(apart[0])
                    self._differ(f"{path}[{at}]", float(left[at]), float(right[at]))
                return
        self._differ(path, expected, actual)

    def _close(self, expected: Any, actual: Any, path: str) -> bool:
        tolerance = self._rules.tolerance(self._method, path)
        if tolerance is None:
            return bool(expected == actual or (np.isnan(expected) and np.isnan(actual)))
        return bool(_is_close(expected, actual, tolerance))


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


class _Count(int):
    def __repr__(self) -> str:
        return f"{int(self)} entries"


_ABSENT = _Absent()


def _value_of(message: Message, field: FieldDescriptor) -> Any:
    return getattr(message, field.name)


def _element_type(field: FieldDescriptor, around: Message | None) -> str:
    """NumPy's name of the floats that bytes hold; empty when they hold none."""
    if field.name.endswith(_FLOAT_SUFFIX):
        return "<f4"
    if around is not None and around.DESCRIPTOR.full_name == _TENSOR:
        return _FLOAT_TYPES.get(around.dtype, "")  # type: ignore[attr-defined]
    return ""


def _numbers(data: bytes, element: str) -> np.ndarray:
    """The floats of shape [n], as float64; bfloat16 comes as two bytes."""
    values = np.frombuffer(data, element)
    if element == "<u2":
        return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def _is_close(expected: Any, actual: Any, tolerance: Approximate) -> Any:
    return np.isclose(actual, expected, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True)


def _short(value: Any) -> str:
    if isinstance(value, Message):
        value = _Shown(str(value).replace("\n", " ").strip() or "an empty message")
    if isinstance(value, bytes):
        shown = f" {value[:24].hex()}{'…' if len(value) > 24 else ''}" if value else ""
        return f"{len(value)} bytes{shown}"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


class _Shown(str):
    def __repr__(self) -> str:
        return str(self)
