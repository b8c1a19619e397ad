"""A vector store in the server's memory that looks at every item; a file keeps what it holds unless told otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import Field

from crucible.port.vector.v1 import vector_pb2
from crucible_adapters.vector.filters import compiled
from crucible_adapters.vector.items import Item, Near, nearest
from crucible_adapters.vector.service import Stored, VectorStoreAdapter
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions


class MemoryOptions(AdapterOptions):
    """Whether it remembers."""

    persist: bool = Field(
        default=True,
        description="Keep everything in vectors.db in the data folder too, synced before a call is confirmed, and read "
        "it when the server starts. false: all is gone with the server.",
    )


class MemoryVectorStore(VectorStoreAdapter):
    """Collections in memory; search is exact."""

    description = AdapterDescription(name="memory-vectors", port="vector", options=MemoryOptions)

    def __init__(self, options: MemoryOptions, context: AdapterContext) -> None:
        super().__init__(MemoryStore(context.data_dir / "vectors.db" if options.persist else None))


class Journal(Protocol):
    """Makes changes durable before they are made in memory."""

    def load(self) -> dict[str, tuple[vector_pb2.Collection, dict[str, Item]]]:
        """Everything that is kept, by collection."""
        ...

    def put(self, collection: vector_pb2.Collection, items: list[Item]) -> None:
        """Keeps a description and items, all or none."""
        ...

    def remove(self, collection: str, ids: list[str] | None) -> None:
        """Forgets items; None: the whole collection."""
        ...

    def close(self) -> None:
        """Closes its file."""
        ...


class MemoryStore:
    """Collections in dictionaries.

    Args:
        file: where they are kept too; None: nowhere.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._journal: Journal | None = None
        self._collections: dict[str, MemoryCollection] = {}
        if file is not None:
            # Not above: it needs SQLAlchemy, which only servers have.
            from crucible_adapters.vector.file import VectorFile

            self._journal = VectorFile(file)
            self._collections = {
                name: MemoryCollection(*content, self._journal) for name, content in self._journal.load().items()
            }

    def names(self) -> list[str]:
        return list(self._collections)

    def open(self, name: str) -> Stored | None:
        return self._collections.get(name)

    def create(self, collection: vector_pb2.Collection) -> Stored:
        if self._journal is not None:
            self._journal.put(collection, [])
        made = self._collections[collection.name] = MemoryCollection(collection, {}, self._journal)
        return made

    def drop(self, name: str) -> None:
        if self._journal is not None:
            self._journal.remove(name, None)
        del self._collections[name]

    def close(self) -> None:
        self._collections.clear()
        if self._journal is not None:
            self._journal.close()


class MemoryCollection:
    """The items of one collection, and exact search among them."""

    def __init__(
        self, collection: vector_pb2.Collection, items: dict[str, Item], journal: Journal | None = None
    ) -> None:
        self._collection = collection
        self._items = items
        self._journal = journal
        # Made of the items when a search needs them: ids in order, and their vectors.
        self._sorted: tuple[list[str], np.ndarray] | None = None

    @property
    def dimension(self) -> int:
        return self._collection.dimension

    def describe(self) -> vector_pb2.Collection:
        found = vector_pb2.Collection()
        found.CopyFrom(self._collection)
        found.num_items = len(self._items)
        return found

    def upsert(self, items: list[Item]) -> tuple[int, int]:
        changed = vector_pb2.Collection()
        changed.CopyFrom(self._collection)
        changed.dimension = len(items[0].vector_D)
        if self._journal is not None:
            self._journal.put(changed, items)
        before = len(self._items)
        self._items.update({each.id: each for each in items})
        self._collection, self._sorted = changed, None
        added = len(self._items) - before
        return added, len(items) - added

    def ids(self, wanted: Iterable[str], filter_: vector_pb2.Filter | None) -> list[str]:
        names = set(wanted)
        chosen = sorted(names & self._items.keys() if names else self._items)
        if filter_ is None:
            return chosen
        matches = compiled(filter_)
        return [each for each in chosen if matches(self._items[each].values)]

    def read(self, ids: Sequence[str], *, with_vectors: bool) -> Iterator[Item]:
        return (self._items[each] for each in ids if each in self._items)

    def nearest(
        self, queries_QD: np.ndarray, count: int, filter_: vector_pb2.Filter | None, left: threading.Event
    ) -> list[list[Near]]:
        ids, vectors_ND = self._by_id()
        if filter_ is not None:
            matches = compiled(filter_)
            places = [place for place, each in enumerate(ids) if matches(self._items[each].values)]
            ids, vectors_ND = [ids[place] for place in places], vectors_ND[places]
        if not ids:
            return [[] for _ in queries_QD]
        return nearest(ids, vectors_ND, queries_QD, self._collection.metric, count, left)

    def delete(self, ids: list[str]) -> None:
        if self._journal is not None:
            self._journal.remove(self._collection.name, ids)
        for each in ids:
            del self._items[each]
        self._sorted = None

    def _by_id(self) -> tuple[list[str], np.ndarray]:
        if self._sorted is None:
            ids = sorted(self._items)
            vectors_ND = np.stack([self._items[each].vector_D for each in ids]) if ids else np.zeros((0, 1), np.float32)
            self._sorted = ids, vectors_ND
        return self._sorted
