"""Finds, while an exchange is recorded, the ids that one side made up, and gives them names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from crucible.type.v1 import constraints_pb2
from crucible_kit.cassettes.fields import Place, constraints_of
from crucible_kit.cassettes.placeholders import Kind, Part, Placeholder

# A shorter value says nothing outside the fields that hold ids: an adapter may number its operations.
_TELLING_CHARACTERS = 12
_WORD = re.compile(r"[A-Za-z0-9_.:/=+-]{12,}")
_PIECES = re.compile(r"([/:=])")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ID_FIELD = re.compile(r"(?:.*_)?(id|uri|token|handle|etag)")


class Namer:
    """Names ids in the order in which they appear: session_1, operation_3.

    An id is a text in a response whose field is called id, uri, token, handle or etag, or ends so, that no request has
    said before; and a UUID that a caller made up.

    Args:
        parameters: values that whoever plays the recording chooses, by name; none may be empty.
    """

    def __init__(self, parameters: Mapping[str, str] | None = None) -> None:
        self._names: dict[tuple[str, str, str], str] = {}
        self._counts: Counter[str] = Counter()
        self._said: set[str] = set()
        self._parameters = {value: Placeholder("set", name) for name, value in (parameters or {}).items()}

    def request(self, place: Place, text: str, scope: str, bind: dict[str, str]) -> list[Part]:
        """The text of a request with names in place of ids. `scope` is the session that the call is about; `bind` gets
        what is named for the first time.
        """
        named = self._named(place, text, scope)
        if named is not None:
            return [named]
        if constraints_of(place.field).format == constraints_pb2.FieldConstraints.FORMAT_UUID and _UUID.fullmatch(text):
            return [self._bind(place, text, scope, bind, "uuid")]
        self._said.add(text)
        return self.inside(text)

    def response(self, place: Place, text: str, scope: str, bind: dict[str, str]) -> list[Part]:
        """The same for a response's text."""
        named = self._named(place, text, scope)
        if named is not None:
            return [named]
        if text and text not in self._said and _ID_FIELD.fullmatch(place.field.name):
            return [self._bind(place, text, scope, bind, "bind")]
        return self.inside(text)

    def inside(self, text: str) -> list[Part]:
        """A text with names in place of parameters and of the long ids within it."""
        parts: list[Part] = [text]
        for value, placeholder in self._parameters.items():
            parts = [
                piece
                for part in parts
                for piece in ([part] if isinstance(part, Placeholder) else _between(part.split(value), placeholder))
            ]
        return [piece for part in parts for piece in ([part] if isinstance(part, Placeholder) else self._words(part))]

    def _words(self, text: str) -> list[Part]:
        parts: list[Part] = []
        end = 0
        for match in _WORD.finditer(text):
            parts.append(text[end : match.start()])
            parts += self._word(match[0])
            end = match.end()
        return [*parts, text[end:]]

    def _word(self, word: str) -> list[Part]:
        bare = word.rstrip(".:=")
        known = self._names.get(("", "", bare))
        if known is not None:
            return [Placeholder("name", known), word[len(bare) :]]
        pieces = _PIECES.split(word)
        names = [self._names.get(("", "", piece)) for piece in pieces]
        return [piece if name is None else Placeholder("name", name) for piece, name in zip(pieces, names, strict=True)]

    def _named(self, place: Place, text: str, scope: str) -> Placeholder | None:
        if text in self._parameters:
            return self._parameters[text]
        name = self._names.get(self._key(place, text, scope))
        return None if name is None else Placeholder("name", name)

    def _bind(self, place: Place, text: str, scope: str, bind: dict[str, str], kind: Kind) -> Placeholder:
        base = _base(place)
        self._counts[base] += 1
        name = f"{base}_{self._counts[base]}"
        self._names[self._key(place, text, scope)] = name
        bind[name] = text
        return Placeholder(kind, name)

    def _key(self, place: Place, text: str, scope: str) -> tuple[str, str, str]:
        if len(text) >= _TELLING_CHARACTERS:
            return "", "", text
        kind = _base(place)
        return ("" if kind == "session" else scope), kind, text


def _base(place: Place) -> str:
    """What an id names: session for session_id and training_session_id, operation for the id of an Operation."""
    words = place.field.name.split("_")
    if words == ["id"]:
        return place.message.rpartition(".")[2].lower()
    if words[-1] == "id":
        return words[-2]
    return words[-1]


def _between(literals: list[str], placeholder: Placeholder) -> list[Part]:
    parts: list[Part] = [literals[0]]
    for literal in literals[1:]:
        parts += [placeholder, literal]
    return parts
