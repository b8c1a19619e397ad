"""The laws of lists that come in pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from crucible_kit.conformance.expect import check, check_equal, check_ids, check_refused

_MAX_PAGES = 10_000
_MAX_PAGE_SIZE = 500


class Page(NamedTuple):
    """One page: the keys of its entries, and the token of the next; empty at the end."""

    keys: list[Any]
    next_token: str


GetPage = Callable[[int, str], Awaitable[Page]]
"""Asks for a page by size and token."""


async def all_keys(get: GetPage, size: int) -> list[Any]:
    """The keys of all pages."""
    keys: list[Any] = []
    token = ""
    for _ in range(_MAX_PAGES):
        page = await get(size, token)
        limit = min(size or 50, _MAX_PAGE_SIZE)
        check(len(page.keys) <= limit, f"at most {limit} entries in a page of page_size {size}", len(page.keys))
        keys += page.keys
        token = page.next_token
        if not token:
            return keys
    raise AssertionError("unreachable: a list does not end")


async def check_pages(get: GetPage, expected: Sequence[Any], what: str) -> None:
    """Every size of page gives every entry once and in order."""
    count = len(expected)
    for size in sorted({0, max(1, count // 7), max(1, count - 1), count, count + 1, 2**31 - 1}):
        check_ids(await all_keys(get, size), expected, f"{what} in pages of {size}")


async def check_names(get: GetPage, what: str) -> list[Any]:
    """A list of names is sorted, has each once, the same in pages of any size, and takes no foreign token."""
    names = await all_keys(get, 0)
    check_equal(names, sorted(set(names)), f"{what}, sorted and each once")
    await check_pages(get, names, what)
    call = get(1, "no-token-of-yours")
    await check_refused(call, "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", what=f"a token that is none, of {what},")
    return names
