"""Types of arguments and results as manifests write them: `text | list[integer] | object[sympy:Basic]`.

none boolean integer real text bytes tensor    as the port's values; a real may be given as an integer
list list[T] dict dict[T]                      without T: of anything
object object[module:Class]                    an object of the session
any
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

TARGET = r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)*"
"""A module and a name in it, such as sympy.core:Expr."""
_PLAIN: dict[str, tuple[type, ...]] = {
    "none": (type(None),),
    "boolean": (bool, np.bool_),
    "integer": (int, np.integer),
    "real": (float, int, np.floating, np.integer),
    "text": (str,),
    "bytes": (bytes, bytearray),
    "tensor": (np.ndarray,),
}
_TOKEN = re.compile(rf"\s*(?:(\[|\]|\|)|({TARGET})|([a-z]+))")
_MAX_DEPTH = 8

Load = Callable[[str], Any]


@dataclass(frozen=True)
class Type:
    """One alternative, or several.

    Attributes:
        name: the kind; "|" for a union.
        inner: of a list or a dict its items' type, of a union the alternatives.
        target: class of an object; empty: any.
    """

    name: str
    inner: tuple[Type, ...] = ()
    target: str = ""

    def __str__(self) -> str:
        if self.name == "|":
            return " | ".join(str(each) for each in self.inner)
        bracket = self.target or "".join(str(each) for each in self.inner)
        return f"{self.name}[{bracket}]" if bracket else self.name

    def targets(self) -> set[str]:
        """The classes it names."""
        return {self.target, *(each for inner in self.inner for each in inner.targets())} - {""}


def parse_type(text: str) -> Type:
    """The type that a manifest writes. Raises ValueError."""
    tokens: list[str] = []
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"the type {text!r} can't be read at {text[position:].strip()!r}")
        tokens.append(match.group().strip())
        position = match.end()
    found, rest = _union(tokens, 0)
    if rest:
        raise ValueError(f"the type {text!r} goes on with {rest[0]!r} where it should end")
    return found


def _union(tokens: list[str], depth: int) -> tuple[Type, list[str]]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"a type is nested deeper than {_MAX_DEPTH}")
    first, tokens = _single(tokens, depth)
    alternatives = [first]
    while tokens and tokens[0] == "|":
        each, tokens = _single(tokens[1:], depth)
        alternatives.append(each)
    return (first if len(alternatives) == 1 else Type("|", tuple(alternatives))), tokens


def _single(tokens: list[str], depth: int) -> tuple[Type, list[str]]:
    name = tokens[0] if tokens else ""
    if name not in {*_PLAIN, "list", "dict", "object", "any"}:
        raise ValueError(f"{name!r} is no type: there are {', '.join(_PLAIN)}, list, dict, object, any")
    tokens = tokens[1:]
    if not tokens or tokens[0] != "[":
        return Type(name), tokens
    if name == "object":
        if len(tokens) < 3 or ":" not in tokens[1] or tokens[2] != "]":
            raise ValueError("object[...] takes one class, such as object[sympy:Expr]")
        return Type(name, target=tokens[1]), tokens[3:]
    if name not in ("list", "dict"):
        raise ValueError(f"{name} takes no [...]")
    inner, tokens = _union(tokens[1:], depth + 1)
    if not tokens or tokens[0] != "]":
        raise ValueError(f"{name}[ is not closed")
    return Type(name, (inner,)), tokens[1:]


def mismatch(kind: Type, obj: Any, path: str, load: Load) -> tuple[str, str] | None:
    """Where an object is not of the type, and what is wrong there; None: it is.

    Args:
        path: of the object, such as args[0].
        load: the class that a target names.
    """
    if kind.name == "any":
        return None
    if kind.name == "|":
        found = [mismatch(each, obj, path, load) for each in kind.inner]
        if None in found:
            return None
        # One alternative may be the right kind of container, with a wrong item further in.
        deeper = [each for each in found if each is not None and each[0] != path]
        return deeper[0] if deeper else (path, _problem(kind, obj))
    if kind.name == "object":
        known = object if not kind.target else load(kind.target)
        return None if isinstance(obj, known) else (path, _problem(kind, obj))
    if kind.name in ("list", "dict"):
        return _container(kind, obj, path, load)
    fits = isinstance(obj, _PLAIN[kind.name]) and (kind.name == "boolean" or not isinstance(obj, (bool, np.bool_)))
    return None if fits else (path, _problem(kind, obj))


def _container(kind: Type, obj: Any, path: str, load: Load) -> tuple[str, str] | None:
    if not isinstance(obj, (list, tuple) if kind.name == "list" else dict):
        return path, _problem(kind, obj)
    if not kind.inner:
        return None
    items = obj.items() if isinstance(obj, dict) else enumerate(obj)
    for key, each in items:
        found = mismatch(kind.inner[0], each, f"{path}[{key!r}]", load)
        if found is not None:
            return found
    return None


def _problem(kind: Type, obj: Any) -> str:
    return f"is a {type(obj).__qualname__}, not {kind}"
