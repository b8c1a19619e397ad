"""Values of --set: JSON, or what YAML would make of a plain word."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

# Keys whose values may be files or folders of the caller's machine.
PATH_KEYS = frozenset({"dataset", "eval_dataset", "model", "start_from", "tokenizer"})
# What can only be meant as a path of this machine, whether it is there or not.
_PATH = re.compile(r"(\.{1,2}/|~).*|.*\.(jsonl|parquet)", re.DOTALL)
_WORDS = {"true": True, "false": False, "null": None, "~": None}
# JSON wants 1.0 and 0.5; people also write 1. and .5 and +2.
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def parse_settings(pairs: Iterable[str]) -> dict[str, Any]:
    """key=value words as a configuration; a later one wins.

    Raises:
        click.BadParameter: for a word without key or '='.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key.strip():
            raise click.BadParameter(f"{pair!r} must be key=value, such as learning_rate=1e-3", param_hint="--set")
        settings[key.strip()] = parse_value(text.strip())
    return {key: absolute_path(key, value) for key, value in settings.items()}


def parse_value(text: str) -> Any:
    """JSON where it is JSON; true, false, null, numbers and [a, b] as in YAML; otherwise the text itself."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        pass
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _NUMBER.fullmatch(text):
        return float(text) if set(text) & set(".eE") else int(text)
    if text.startswith("[") and text.endswith("]"):
        return [parse_value(part.strip()) for part in _split(text[1:-1])]
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    return text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _split(inner: str) -> list[str]:
    """The parts between commas that are outside quotes and inner brackets."""
    parts, depth, quote, start = [], 0, "", 0
    for index, letter in enumerate(inner):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(inner[start:index])
            start = index + 1
    last = inner[start:]
    return [*parts, last] if parts or last.strip() else []


def absolute_path(key: str, value: Any) -> Any:
    """The full path where the value of a path key is a file or folder here, or looks like one, with or without #split
    behind it: the server has a folder of its own, and says which path is not there.
    """
    if key not in PATH_KEYS or not isinstance(value, str) or not value:
        return value
    for text, split in ((value, ""), (value.rpartition("#")[0], value[value.rfind("#") :])):
        path = Path(text).expanduser()
        if text and (path.exists() or (_PATH.fullmatch(text) and "://" not in text)):
            return f"{path.absolute()}{split}"
    return value
