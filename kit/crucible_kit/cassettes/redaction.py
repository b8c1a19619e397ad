"""Keeps secrets out of recordings: fields that their proto marks as secret, and known values wherever they appear."""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.message import Message

from crucible_kit.cassettes.fields import Place, rewrite
from crucible_kit.cassettes.placeholders import Placeholder

_SHORTEST = 4
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


class Redactor:
    """Knows the values that must not be written. A value shorter than four characters is hidden in its field only: it
    would be found everywhere.

    Args:
        values: such as API keys that the caller knows of, for the places where no proto says that they are secret.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._known: dict[str, str] = {}
        for value in values:
            self.learn(value, "value")

    def learn(self, value: str, name: str) -> None:
        """Hides a value from now on, as `${secret:name}`."""
        if len(value) >= _SHORTEST:
            self._known.setdefault(value, str(Placeholder("secret", secret_name(name))))

    def learn_from(self, message: Message) -> None:
        """Hides the values of a message's secret fields from now on."""

        def text(place: Place, value: str) -> str:
            if place.secret:
                self.learn(value, place.key or place.field.name)
            return value

        rewrite(message, text, lambda _, data: data)

    def text(self, text: str) -> str:
        """The text without the known values."""
        # The longest first: one may be part of another.
        for value in sorted(self._known, key=len, reverse=True):
            if value in text:
                text = text.replace(value, self._known[value])
        return text

    def data(self, data: bytes) -> bytes:
        """The bytes with the known values starred out: their length often stands elsewhere."""
        for value in sorted(self._known, key=len, reverse=True):
            hidden = value.encode()
            if hidden in data:
                data = data.replace(hidden, b"*" * len(hidden))
        return data


def secret_name(name: str) -> str:
    """A key or field name as a placeholder may carry it."""
    return _NAME.sub("_", name) or "secret"


def secret_of(place: Place) -> str:
    """What stands in the place of a secret field's value."""
    return str(Placeholder("secret", secret_name(place.key or place.field.name)))
