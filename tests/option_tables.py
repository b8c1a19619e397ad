"""Tables of options in the docs, compared with the code."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

PAGES = Path(__file__).parents[1] / "docs/adapters"


def check_table(page: str, heading: str, model: type[BaseModel], elsewhere: Collection[str] = ()) -> None:
    """The section's table tells every option as the model has it, but for those that are told elsewhere.

    Args:
        page: name of the file in docs/adapters.
        heading: of the section, without its #.
    """
    text = re.split(r"^#+ ", (PAGES / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    section = next(each for each in text if each.startswith(heading + "\n"))
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", section, flags=re.MULTILINE)
    fields = {name: each for name, each in model.model_fields.items() if name not in elsewhere}
    assert [name for name, *_ in rows] == list(fields)
    for name, kind, default, meaning in rows:
        field = fields[name]
        assert kind == _kind(field.annotation), name
        assert default == _default(field), name
        assert meaning == str(field.description).replace("|", "\\|"), name


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
    if value is PydanticUndefined:
        return "required"
    if value is None or value == "" or value == {}:
        return "none"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple):
        return ", ".join(str(each) for each in value)
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"
