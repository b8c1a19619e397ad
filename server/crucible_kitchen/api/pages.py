"""Pieces of runs' logs as a watch answers them: read once for all the watchers that are at the same place."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import NamedTuple
from weakref import WeakValueDictionary

from crucible.kitchen.v1 import run_pb2
from crucible.kitchen.v1.event_pb2 import RunState
from crucible_kitchen.store.reads import EventPage
from crucible_kitchen.store.store import Store

_KEPT_BYTES = 4 * 1024 * 1024

_Place = tuple[str, int, int]
"""Run, sequence number after which, and how many events at most."""


class Seen(NamedTuple):
    """What a watcher gets, and how the run stood then.

    Attributes:
        response: shared with others: not to be changed.
        state: the run's state after the last event of its log.
    """

    response: run_pb2.WatchRunResponse
    state: RunState


class _Page:
    """A piece of a log, with the responses that carry it."""

    def __init__(self, read: EventPage, limit: int) -> None:
        self.read = read
        self.position = read.events[-1].sequence
        # A log only grows at its end: what was cut off by a limit stays as it is.
        self.complete = self.position < read.last_sequence or len(read.events) >= limit
        self._responses: dict[bool, run_pb2.WatchRunResponse] = {}
        self.size = sum(event.ByteSize() for event in read.events)

    def response(self, *, caught_up: bool) -> run_pb2.WatchRunResponse:
        """The piece as the wire shows it."""
        response = self._responses.get(caught_up)
        if response is None:
            response = run_pb2.WatchRunResponse(
                events=self.read.events, last_sequence=self.position, caught_up=caught_up
            )
            self._responses[caught_up] = response
        return response


class Pages:
    """The newest pieces that watchers have read, up to a size."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pages: OrderedDict[_Place, _Page] = OrderedDict()
        self._size = 0
        self._reading: WeakValueDictionary[_Place, asyncio.Lock] = WeakValueDictionary()

    async def after(self, run_id: str, position: int, limit: int) -> Seen:
        """At most `limit` events after a sequence number; none when there are none, or when it is past the log's end.

        Raises:
            NotFoundError: RUN_NOT_FOUND.
        """
        run = await self._store.get_run(run_id)
        if run.last_sequence <= position:
            nothing = run_pb2.WatchRunResponse(last_sequence=run.last_sequence, caught_up=True)
            return Seen(nothing, run.state)
        place = (run_id, position, limit)
        page = self._known(place, run.last_sequence)
        if page is None:
            lock = self._reading.setdefault(place, asyncio.Lock())
            async with lock:
                page = self._known(place, run.last_sequence)
                if page is None:
                    page = _Page(await self._store.event_page(run_id, position, limit=limit), limit)
                    self._keep(place, page)
        # Whichever saw the log later knows where it ends.
        end, state = max((run.last_sequence, run.state), (page.read.last_sequence, page.read.state))
        return Seen(page.response(caught_up=page.position >= end), state)

    def _known(self, place: _Place, end: int) -> _Page | None:
        page = self._pages.get(place)
        if page is None or not (page.complete or page.position >= end):
            return None
        self._pages.move_to_end(place)
        return page

    def _keep(self, place: _Place, page: _Page) -> None:
        replaced = self._pages.pop(place, None)
        self._size += page.size - (0 if replaced is None else replaced.size)
        self._pages[place] = page
        while self._size > _KEPT_BYTES and len(self._pages) > 1:
            self._size -= self._pages.popitem(last=False)[1].size
