"""Page tokens: a position in a list, tied to the filters of the request that got it."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta

from crucible.kitchen.v1 import run_pb2
from crucible_kit.errors import InvalidArgumentError, field_error

DEFAULT_PAGE = 50
MAX_PAGE = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DIGEST_BYTES = 12

# Create time and id of the last run of a page.
Position = tuple[datetime, str]


def page_size(asked: int) -> int:
    """The entries of a page."""
    return min(asked or DEFAULT_PAGE, MAX_PAGE)


def to_token(position: Position, request: run_pb2.ListRunsRequest) -> str:
    """An opaque token that goes on after the position."""
    time, run_id = position
    body = json.dumps([(time - _EPOCH) // _MICROSECOND, run_id]).encode()
    return base64.urlsafe_b64encode(_digest(body, request) + body).decode().rstrip("=")


def from_token(request: run_pb2.ListRunsRequest) -> Position | None:
    """The position of the request's token; None without one.

    Raises:
        InvalidArgumentError: PAGE_TOKEN_INVALID when it is damaged or belongs to other filters.
    """
    token = request.page_token
    if not token:
        return None
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise _invalid() from error
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if digest != _digest(body, request):
        raise _invalid()
    try:
        microseconds, run_id = json.loads(body)
        return _EPOCH + microseconds * _MICROSECOND, str(run_id)
    except (ValueError, TypeError, OverflowError) as error:  # made by somebody else
        raise _invalid() from error


def _digest(body: bytes, request: run_pb2.ListRunsRequest) -> bytes:
    """Detects damage and other filters. It is no secret: whoever forges a token only pages from elsewhere."""
    filters = run_pb2.ListRunsRequest(states=request.states, recipe=request.recipe, labels=request.labels)
    return hashlib.sha256(filters.SerializeToString(deterministic=True) + b"\0" + body).digest()[:_DIGEST_BYTES]


def _invalid() -> InvalidArgumentError:
    return field_error(
        "page_token",
        "is not a token of this list: send the next_page_token of the response before, with the same filters",
        reason="PAGE_TOKEN_INVALID",
    )
