"""Page tokens of ListRuns: a place in the list of runs, tied to the filters of the request that got it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from crucible.kitchen.v1 import run_pb2
from crucible_kit.errors import field_error
from crucible_kit.paging import decode, encode

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# Create time and id of the last run of a page.
Position = tuple[datetime, str]


def to_token(position: Position, request: run_pb2.ListRunsRequest) -> str:
    """An opaque token that goes on after the position."""
    time, run_id = position
    return encode([(time - _EPOCH) // _MICROSECOND, run_id], _scope(request))


def from_token(request: run_pb2.ListRunsRequest) -> Position | None:
    """The position of the request's token; None without one.

    Raises:
        InvalidArgumentError: PAGE_TOKEN_INVALID when it is damaged or belongs to other filters.
    """
    match decode(request.page_token, _scope(request)):
        case []:
            return None
        case [int(microseconds), str(run_id)] if 0 <= microseconds < 10**17:
            return _EPOCH + microseconds * _MICROSECOND, run_id
        case _:  # made by somebody else
            raise field_error("page_token", "is not a token of this list", reason="PAGE_TOKEN_INVALID")


def _scope(request: run_pb2.ListRunsRequest) -> str:
    filters = run_pb2.ListRunsRequest(states=request.states, recipe=request.recipe, labels=request.labels)
    return f"ListRuns:{filters.SerializeToString(deterministic=True).hex()}"
