"""Pages of lists that are kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from crucible_kit import paging

Item = TypeVar("Item")
_MAX_PAGE_BYTES = 8 * 1024 * 1024


def page(
    items: Sequence[Item],
    key: Callable[[Item], Any],
    request: Any,
    *scope: object,
    size_of: Callable[[Item], int] = lambda item: 0,
) -> tuple[list[Item], str]:
    """The items of the page that a request asks for, and the token of the next one.

    Args:
        items: all of them, in ascending order of their keys.
        key: what orders them: a string or a number.
        request: has page_size and page_token.
        scope: which list it is: its method, and what filters it.
        size_of: bytes of an item; a page has at most 8 MiB, or one item. Items are small unless it is given.

    Raises:
        InvalidArgumentError: PAGE_TOKEN_INVALID.
    """
    size = paging.page_size(request.page_size)
    name = "\0".join(str(part) for part in scope)
    position = paging.decode(request.page_token, name)
    rest = [each for each in items if not position or key(each) > position[0]]
    shown: list[Item] = []
    room = _MAX_PAGE_BYTES
    for each in rest[:size]:
        room -= size_of(each)
        if shown and room < 0:
            break
        shown.append(each)
    more = len(rest) > len(shown)
    return shown, paging.encode([key(shown[-1])], name) if more else ""
