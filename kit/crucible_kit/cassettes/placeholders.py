"""Texts with placeholders: what one side of a recorded exchange made up, and what must not be written down.

`${bind:x}` stands where an id appears first in a response, `${uuid:x}` where a caller's UUID does, `${x}` for either
from then on, `${set:x}` for a value that whoever plays the recording chooses, `${secret:x}` for a secret. A literal `$`
is written `$$`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, cast

Kind = Literal["bind", "uuid", "set", "secret", "name"]
_TOKEN = re.compile(r"\$\$|\$\{(?:(bind|uuid|set|secret):)?([A-Za-z0-9_.-]+)\}")
_ANYTHING = {"uuid": r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"}


class Placeholder(NamedTuple):
    """One `${...}`; kind `name` is a reference without a kind."""

    kind: Kind
    name: str

    @property
    def key(self) -> str:
        """Where its value stands in the bindings: secrets have names of their own."""
        return f"secret.{self.name}" if self.kind == "secret" else self.name

    def __str__(self) -> str:
        return f"${{{self.name}}}" if self.kind == "name" else f"${{{self.kind}:{self.name}}}"


Bindings = Mapping[str, str]


class Unbound(Exception):
    """A text can't be written yet: it names what nobody has said so far."""

    def __init__(self, placeholder: Placeholder) -> None:
        super().__init__(str(placeholder))
        self.placeholder = placeholder


Part = str | Placeholder
"""A literal text, or a placeholder."""


def write(parts: Iterable[Part]) -> str:
    """Parts as one text, in which literal ones are told from placeholders."""
    return "".join(str(part) if isinstance(part, Placeholder) else part.replace("$", "$$") for part in parts)


def parse(text: str) -> list[Part]:
    """The parts of a text, in order."""
    parts: list[Part] = []
    end = 0
    for match in _TOKEN.finditer(text):
        parts.append(text[end : match.start()])
        parts.append("$" if match[2] is None else Placeholder(cast(Kind, match[1] or "name"), match[2]))
        end = match.end()
    parts.append(text[end:])
    return [part for part in parts if part != ""]


def render(text: str, bindings: Bindings) -> str:
    """The text with values in place of placeholders. Raises Unbound."""
    if "$" not in text:
        return text
    done = []
    for part in parse(text):
        if isinstance(part, Placeholder):
            if part.key not in bindings:
                raise Unbound(part)
            part = bindings[part.key]
        done.append(part)
    return "".join(done)


def match(text: str, actual: str, bindings: Bindings) -> dict[str, str] | None:
    """What `actual` says about the placeholders that have no value yet; None when it does not fit.

    A reference to something that nobody has said yet fits nothing.
    """
    if "$" not in text:
        return {} if text == actual else None
    pattern: list[str] = []
    groups: dict[str, str] = {}
    for part in parse(text):
        if not isinstance(part, Placeholder):
            pattern.append(re.escape(part))
        elif part.key in bindings and part.kind != "secret":
            pattern.append(re.escape(bindings[part.key]))
        elif part.key in groups:
            pattern.append(f"(?P={groups[part.key]})")
        elif part.kind == "name":
            return None
        else:
            groups[part.key] = f"p{len(groups)}"
            pattern.append(f"(?P<{groups[part.key]}>{_ANYTHING.get(part.kind, '.+')})")
    found = re.fullmatch("".join(pattern), actual, re.DOTALL)
    return None if found is None else {key: found[group] for key, group in groups.items()}
