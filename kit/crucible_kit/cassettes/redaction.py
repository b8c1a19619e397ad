"""Keeps secrets out of recordings: fields that their proto marks as secret, and known values wherever they appear."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from crucible_kit.cassettes.fields import Place, rewrite
from crucible_kit.cassettes.placeholders import Part, Placeholder, parse, write

_SHORTEST = 4
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


class Redactor:
    """Knows the values that must not be written. A value shorter than four characters is hidden in its field only: it
    would be found everywhere.

    Args:
        values: such as API keys that the caller knows of, for the places where no proto says that they are secret.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._known: dict[str, Placeholder] = {}
        for value in values:
            self.learn(value, "value")

    def learn(self, value: str, name: str) -> None:
        """Hides a value from now on, as `${secret:name}`."""
        if len(value) >= _SHORTEST:
            self._known.setdefault(value, Placeholder("secret", secret_name(name)))

    def learn_from(self, message: Message) -> None:
        """Hides the values of a message's secret fields from now on."""

        def text(place: Place, value: str) -> str:
            if place.secret:
                self.learn(value, place.key or place.field.name)
            return value

        rewrite(message, text, lambda _, data: data)

    def parts(self, text: str) -> list[Part]:
        """A literal text with placeholders in the places of the known values."""
        parts: list[Part] = [text]
        # The longest first: one may be part of another.
        for value in sorted(self._known, key=len, reverse=True):
            if value in text:
                parts = [piece for part in parts for piece in self._cut(part, value)]
        return parts

    def _cut(self, part: Part, value: str) -> list[Part]:
        if isinstance(part, Placeholder):
            return [part]
        pieces: list[Part] = []
        for literal in part.split(value):
            pieces += [literal, self._known[value]]
        return [piece for piece in pieces[:-1] if piece != ""]

    def key(self, key: str) -> str:
        """A text that holds no placeholders, such as the key of a map, with the known values starred out."""
        for value in sorted(self._known, key=len, reverse=True):
            key = key.replace(value, "*" * len(value))
        return key

    def data(self, data: bytes) -> bytes:
        """The bytes with the known values starred out: their length often stands elsewhere."""
        for value in sorted(self._known, key=len, reverse=True):
            hidden = value.encode()
            if hidden in data:
                data = data.replace(hidden, b"*" * len(hidden))
        return data

    def tree(self, value: Any) -> Any:
        """JSON as a cassette has it, without the known values in its texts; names of fields stay."""
        if isinstance(value, str):
            literal = parse(value)
            return write(
                piece for part in literal for piece in ([part] if isinstance(part, Placeholder) else self.parts(part))
            )
        if isinstance(value, dict):
            return {key: self.tree(each) for key, each in value.items()}
        return [self.tree(each) for each in value] if isinstance(value, list) else value


def secret_name(name: str) -> str:
    """A key or field name as a placeholder may carry it."""
    return _NAME.sub("_", name) or "secret"


def secret_of(place: Place) -> str:
    """What stands in the place of a secret field's value."""
    return write([Placeholder("secret", secret_name(place.key or place.field.name))])
