"""Reading lists page by page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from crucible_kit.errors import InvalidArgumentError
from tests.contract.refusals import refused


async def all_pages(method: Callable[[Any], Awaitable[Any]], request: Any, field: str, *, size: int = 1) -> list[Any]:
    """What the pages of a list hold together; each has at most `size` entries, and only the last may be empty."""
    found: list[Any] = []
    request.page_size, request.page_token = size, ""
    while True:
        response = await method(request)
        shown = list(getattr(response, field))
        assert len(shown) <= size
        found += shown
        if not response.next_page_token:
            return found
        assert shown
        request.page_token = response.next_page_token


async def assert_pages(method: Callable[[Any], Awaitable[Any]], request: Any, field: str) -> None:
    """Pages of every size give the same list once, and refuse what is no page."""
    request.page_size, request.page_token = 500, ""
    whole = list(getattr(await method(request), field))
    for size in (1, 2, 100):
        assert await all_pages(method, request, field, size=size) == whole
    request.page_token = ""
    with refused(InvalidArgumentError, "FIELD_INVALID", field="page_size"):
        request.page_size = -1
        await method(request)
    with refused(InvalidArgumentError, "PAGE_TOKEN_INVALID", field="page_token"):
        request.page_size, request.page_token = 1, "nonsense"
        await method(request)
