"""Typed settings: pydantic models whose errors name the key, the value and the nearest valid key."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from crucible_kit.errors import FieldViolation, InvalidArgumentError

Model = TypeVar("Model", bound=BaseModel)
_MAX_TOLD = 20
_HIDDEN = "hidden_input"


def hidden_value_error(problem: str) -> PydanticCustomError:
    """What a validator raises about a value that may be a secret: the error does not show it."""
    return PydanticCustomError(_HIDDEN, "{problem}", {"problem": problem})


def parse_settings(
    model: type[Model], values: Mapping[str, Any], *, where: str, reason: str = "CONFIG_INVALID"
) -> Model:
    """The validated model. `where` is the path of `values` in the request, such as config.

    Raises:
        InvalidArgumentError: with one violation for each bad key; an unknown one names the nearest valid key.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        # Of thousands of bad keys a few are told: looking for each one's nearest key would take seconds.
        violations = [_violation(each, model, where) for each in error.errors()[:_MAX_TOLD]]
    shown = "; ".join(f"{each.field}: {each.description}" for each in violations[:5])
    raise InvalidArgumentError(shown, reason=reason, metadata={"field": violations[0].field}, fields=violations)


def _violation(problem: Any, model: type[BaseModel], where: str) -> FieldViolation:
    location = ".".join(str(part) for part in problem["loc"])
    field = f"{where}.{location}" if location else where
    if problem["type"] == _HIDDEN:
        return FieldViolation(field, problem["msg"])
    if problem["type"] == "extra_forbidden":
        known = _model_at(model, problem["loc"][:-1])
        return FieldViolation(field, unknown_key(str(problem["loc"][-1]), known.model_fields if known else ()))
    if problem["type"] == "missing":
        return FieldViolation(field, "required, but not given")
    message = problem["msg"].removeprefix("Value error, ")
    return FieldViolation(field, f"{message} (got {_short(problem['input'])})")


def _model_at(model: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel] | None:
    """The model of the object at a path inside a model; None: it can't be told."""
    found: Any = model
    for part in path:
        if isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(str(part))
            found = None if field is None else field.annotation
        elif typing.get_origin(found) in (dict, list, tuple):
            found = typing.get_args(found)[-1]
        else:
            return None
        optional = [each for each in typing.get_args(found) if isinstance(each, type) and issubclass(each, BaseModel)]
        if typing.get_origin(found) not in (dict, list, tuple) and len(optional) == 1:
            found = optional[0]
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to say about a key that does not exist."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if close:
        return f"unknown key; did you mean {close[0]}?"
    return f"unknown key; the keys are {', '.join(names)}" if names else "unknown key"


def _short(value: Any) -> str:
    # A user and password in an address are nobody's to see.
    text = re.sub(r"://[^/\s@]*@", "://…@", repr(value))
    return text if len(text) <= 80 else f"{text[:79]}…"
