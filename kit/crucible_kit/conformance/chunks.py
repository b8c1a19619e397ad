"""The laws of bytes that come in chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from crucible_kit.chunks import CHUNK_BYTES, crc32
from crucible_kit.conformance.expect import check, check_equal

EDGES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1)
"""Sizes at which a writer of chunks may go wrong."""
LARGE_EDGES = (4 * 1024 * 1024 - 1, 4 * 1024 * 1024, 4 * 1024 * 1024 + 1)
"""The same for messages."""


def some_bytes(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat with a period that divides no chunk, so that a misplaced one is seen."""
    pattern = bytes((seed + 7 * number) % 251 for number in range(251))
    return (pattern * (size // 251 + 1))[:size]


async def read_chunks(stream: AsyncIterable[Any], *, start: int = 0, what: str = "the content") -> bytes:
    """The bytes of a stream of chunks with `offset`, `crc32` and `data`, after looking at each."""
    parts: list[bytes] = []
    offset = start
    async for chunk in stream:
        check_equal(chunk.offset, offset, f"the offset of a chunk of {what}")
        check(len(chunk.data) <= CHUNK_BYTES, f"chunks of at most {CHUNK_BYTES} bytes", len(chunk.data))
        check_equal(chunk.crc32, crc32(chunk.data), f"crc32 of the chunk of {what} at {offset}")
        check(bool(chunk.data) or not parts, f"chunks of {what} that hold bytes", "an empty one behind others")
        parts.append(chunk.data)
        offset += len(chunk.data)
    check(bool(parts), f"at least one chunk of {what}, an empty one if there are no bytes", "none")
    return b"".join(parts)


def check_bytes(got: bytes, expected: bytes, what: str) -> None:
    """The same bytes."""
    check_equal(len(got), len(expected), f"the size of {what}")
    if got != expected:
        place = next(index for index, (one, other) in enumerate(zip(got, expected, strict=True)) if one != other)
        check_equal(got[place], expected[place], f"byte {place} of {what}")


class StalledCall:
    """A call whose stream of requests stops before its end, and goes on when told to. A context manager: the call ends
    with it.
    """

    def __init__(self, messages: Iterable[Any], then: Iterable[Any] = ()) -> None:
        """`then`: what comes after the stop."""
        self._messages = list(messages)
        self._then = list(then)
        self._arrived = asyncio.Event()
        self._going_on = asyncio.Event()
        self._call: asyncio.Future[Any] | None = None

    async def _stream(self) -> AsyncIterator[Any]:
        for each in self._messages:
            yield each
        self._arrived.set()
        await self._going_on.wait()
        for each in self._then:
            yield each

    async def begin(self, method: Callable[..., Awaitable[Any]], **options: Any) -> asyncio.Future[Any]:
        """Calls; returns when the messages before the stop are taken, or the call has ended without them."""
        self._call = asyncio.ensure_future(method(self._stream(), **options))
        arrived = asyncio.ensure_future(self._arrived.wait())
        await asyncio.wait({arrived, self._call}, return_when=asyncio.FIRST_COMPLETED)
        arrived.cancel()
        return self._call

    async def end(self) -> Any:
        """Lets the rest come; the answer."""
        assert self._call is not None
        self._going_on.set()
        return await self._call

    async def __aenter__(self) -> StalledCall:
        return self

    async def __aexit__(self, *_: object) -> None:
        # Whoever still waits for a message gets the end.
        self._then.clear()
        self._going_on.set()
        if self._call is not None:
            self._call.cancel()
            await asyncio.gather(self._call, return_exceptions=True)
