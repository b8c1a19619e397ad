"""Finds, while an exchange is recorded, the ids that one side made up, and gives them names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from crucible.type.v1 import constraints_pb2
from crucible_kit.cassettes.fields import Place, constraints_of
from crucible_kit.cassettes.placeholders import Placeholder

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
        self._parameters = {value: str(Placeholder("set", name)) for name, value in (parameters or {}).items()}

    def request(self, place: Place, text: str, scope: str, bind: dict[str, str]) -> str:
        """The text of a request with names in place of ids. `scope` is the session that the call is about; `bind` gets
        what is named for the first time.
        """
        if text in self._parameters:
            return self._parameters[text]
        named = self._named(place, text, scope)
        if named is not None:
            return named
        if constraints_of(place.field).format == constraints_pb2.FieldConstraints.FORMAT_UUID and _UUID.fullmatch(text):
            return self._bind(place, text, scope, bind, "uuid")
        self._said.add(text)
        return self.inside(text)

    def response(self, place: Place, text: str, scope: str, bind: dict[str, str]) -> str:
        """The same for a response's text."""
        if text in self._parameters:
            return self._parameters[text]
        named = self._named(place, text, scope)
        if named is not None:
            return named
        if text and text not in self._said and _ID_FIELD.fullmatch(place.field.name):
            return self._bind(place, text, scope, bind, "bind")
        return self.inside(text)

    def inside(self, text: str) -> str:
        """A text with names in place of the long ids within it."""
        for value, name in self._parameters.items():
            text = text.replace(value, name)
        return _WORD.sub(lambda match: self._word(match[0]), text)

    def _word(self, word: str) -> str:
        bare = word.rstrip(".:=")
        known = self._names.get(("", "", bare))
        if known is not None:
            return f"${{{known}}}{word[len(bare) :]}"
        return "".join(
            f"${{{known}}}" if (known := self._names.get(("", "", piece))) else piece for piece in _PIECES.split(word)
        )

    def _named(self, place: Place, text: str, scope: str) -> str | None:
        name = self._names.get(self._key(place, text, scope))
        return None if name is None else f"${{{name}}}"

    def _bind(self, place: Place, text: str, scope: str, bind: dict[str, str], kind: str) -> str:
        base = _base(place)
        self._counts[base] += 1
        name = f"{base}_{self._counts[base]}"
        self._names[self._key(place, text, scope)] = name
        bind[name] = text
        return f"${{{kind}:{name}}}"

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
