"""Page sizes, and page tokens: a position in a list, tied to the request whose list it is."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from crucible_kit.errors import InvalidArgumentError, field_error

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
_DIGEST_BYTES = 12


def page_size(requested: int) -> int:
    """The entries of a page: 50 for 0, at most 500. Raises INVALID_ARGUMENT FIELD_INVALID for a negative number."""
    if requested < 0:
        raise field_error("page_size", f"is {requested}, must be at least 0; 0 is {DEFAULT_PAGE_SIZE}")
    return min(requested or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def encode(position: list[Any], scope: str) -> str:
    """An opaque token that goes on after a position.

    Args:
        position: sort keys of the last entry sent, as JSON values.
        scope: which list it is: the method and its filters. Only the same scope takes the token back.
    """
    body = json.dumps(position, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_digest(body, scope) + body).decode().rstrip("=")


def decode(token: str, scope: str) -> list[Any]:
    """The position of a token; [] for an empty token, the start of the list.

    Raises:
        InvalidArgumentError: PAGE_TOKEN_INVALID when it is damaged or belongs to another scope.
    """
    if not token:
        return []
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise _invalid() from error
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    # No secret: it tells damage and other lists apart. Whoever forges a token only pages from elsewhere.
    if digest != _digest(body, scope):
        raise _invalid()
    try:
        position = json.loads(body)
    except ValueError as error:
        raise _invalid() from error
    if not isinstance(position, list):
        raise _invalid()
    return position


def _digest(body: bytes, scope: str) -> bytes:
    return hashlib.sha256(scope.encode() + b"\0" + body).digest()[:_DIGEST_BYTES]


def _invalid() -> InvalidArgumentError:
    return field_error(
        "page_token",
        "is not a token of this list: send the next_page_token of the response before, with the same other fields",
        reason="PAGE_TOKEN_INVALID",
    )
