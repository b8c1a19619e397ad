"""The errors of a provider, at a word: a text such as `raise RATE_LIMITED` is answered with that error."""

from __future__ import annotations

import re

from crucible_kit.errors import (
    DataLossError,
    DeadlineExceededError,
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

_RETRY_SECONDS = 2.0
_ERRORS: dict[str, tuple[type[KitchenError], float | None]] = {
    "PROVIDER_UNAVAILABLE": (UnavailableError, _RETRY_SECONDS),
    "RATE_LIMITED": (ResourceExhaustedError, _RETRY_SECONDS),
    "QUOTA_EXHAUSTED": (ResourceExhaustedError, None),
    "PROVIDER_TIMEOUT": (DeadlineExceededError, None),
    "PROVIDER_CREDENTIALS": (UnauthenticatedError, None),
    "PROVIDER_FORBIDDEN": (PermissionDeniedError, None),
    "PROVIDER_REPLY_MALFORMED": (DataLossError, None),
    "PROVIDER_REFUSED_REQUEST": (InvalidArgumentError, None),
}
_ORDER = re.compile(r"(raise|break) ([A-Z_]+)")


def ordered_error(text: str, verb: str) -> KitchenError | None:
    """The error that a text orders: `raise` at once, `break` within a stream. None: it orders none."""
    order = _ORDER.fullmatch(text.strip())
    if order is None or order[1] != verb or order[2] not in _ERRORS:
        return None
    kind, retry = _ERRORS[order[2]]
    return kind(f"the fake provider was told to answer {order[2]}", reason=order[2], retry_delay=retry)


def count_tokens(text: str) -> int:
    """Tokens of a text as the fake providers count them: words and marks."""
    return len(TOKEN.findall(text))


def model_not_found(model: str, known: list[str]) -> NotFoundError:
    """The error of a model that the provider does not have."""
    return NotFoundError(
        f"model: the provider has no {model!r}; it has {', '.join(known)}",
        reason="MODEL_NOT_FOUND",
        metadata={"model": model, "field": "model"},
    )


TOKEN = re.compile(r"\w+|[^\w\s]")
