"""Tables of options in the pages of adapters, as the code has them."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel


def table(model: type[BaseModel]) -> str:
    """The table of an adapter's options that its page must hold."""
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        required = field.is_required()
        default = "required" if required else _shown(field.get_default(call_default_factory=True))
        meaning = str(field.description).replace("|", "\\|")
        rows.append(f"| `{name}` | {_kind(field.annotation)} | {default} | {meaning} |")
    return "\n".join(rows)


def _kind(annotation: Any) -> str:
    arguments = [each for each in get_args(annotation) if each not in (type(None), ...)]
    if not arguments:
        return annotation.__name__
    if all(isinstance(each, str) for each in arguments):
        return ", ".join(f"`{each}`" for each in arguments)
    if get_origin(annotation) is dict:
        return f"{_kind(arguments[1])} by name"
    return f"list of {_kind(arguments[0])}" if get_origin(annotation) is tuple else _kind(arguments[0])


def _shown(value: Any) -> str:
    match value:
        case None:
            return "none"
        case "":
            return "empty"
        case bool():
            return f"`{str(value).lower()}`"
        case dict():
            return ", ".join(f"`{each}`" for each in value) or "none"
        case tuple():
            return ", ".join(f"`{each}`" for each in value)
        case BaseModel():
            return "as below"
    return f"`{value}`"
