"""Tables of options in the docs, compared with the code."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

PAGES = Path(__file__).parents[1] / "docs/adapters"


def check_table(
    page: str, heading: str, model: type[BaseModel], elsewhere: Collection[str] = (), *, types: bool = True
) -> None:
    """The section's table tells every option as the model has it, but for those that are told elsewhere.

    Args:
        page: name of the file in docs/adapters.
        heading: of the section, without its #.
        types: whether the table has a column of types.
    """
    text = re.split(r"^#+ ", (PAGES / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = next(each for each in text if each.startswith(heading + "\n"))
    shown = [line for line in section.splitlines() if re.match(r"\| `\w+` \|", line)]
    assert shown == rows(model, elsewhere, types=types)


def rows(model: type[BaseModel], elsewhere: Collection[str] = (), *, types: bool = True) -> list[str]:
    """The lines of a model's table."""
    lines = []
    for name, field in model.model_fields.items():
        if name in elsewhere:
            continue
        kind = [_kind(field.annotation)] if types else []
        cells = [f"`{name}`", *kind, _default(field), str(field.description).replace("|", "\\|")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _kind(annotation: Any) -> str:
    arguments = [each for each in get_args(annotation) if each not in (type(None), ...)]
    if annotation is Any:
        return "value"
    if not arguments:
        return annotation.__name__
    if all(isinstance(each, str) for each in arguments):
        return ", ".join(f"`{each}`" for each in arguments)
    if get_origin(annotation) is dict:
        return f"{_kind(arguments[1])} by name"
    if get_origin(annotation) is tuple:
        return f"list of {_kind(arguments[0])}"
    return _kind(arguments[0])


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    # A bare object stands for a default that is absent, where None is a value.
    if value is None or value in ("", {}, ()) or type(value) is object:
        return "none"
    match value:
        case _ if value is PydanticUndefined:
            return "required"
        case BaseModel():
            return "see below"
        case bool():
            return str(value).lower()
        case dict():
            return ", ".join(f"`{each}`" for each in value)
        case tuple():
            return ", ".join(str(each) for each in value)
        case str():
            return f"`{value}`"
    return f"{value:.12g}"
