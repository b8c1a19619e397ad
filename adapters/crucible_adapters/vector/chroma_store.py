"""The port's collections as collections of Chroma. Other programs may read and write them too."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict

from crucible.port.vector.v1 import vector_pb2
from crucible_adapters.vector.chroma_errors import ChromaErrors
from crucible_adapters.vector.chroma_filters import from_metadata, to_key, to_where
from crucible_adapters.vector.chroma_vectors import BITS, as_taken, from_bits, to_bits
from crucible_adapters.vector.items import Item, Near, check_waited_for, distances, nearest, read_items
from crucible_adapters.vector.service import Stored, collection_exists
from crucible_kit.adapter import to_struct
from crucible_kit.tensors import to_tensor

_SPACES = {
    vector_pb2.METRIC_COSINE: "cosine",
    vector_pb2.METRIC_L2: "l2",
    vector_pb2.METRIC_INNER_PRODUCT: "ip",
}
_METRICS = {space: metric for metric, space in _SPACES.items()}
_METADATA, _DIMENSION = "crucible:metadata", "crucible:dimension"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_LIKE_AN_ADDRESS = re.compile(r"[0-9.]+")
_READ_ITEMS = 32
_READ_VECTORS = 2000
_NAMES_PAGE = 500
_SPARE_RESULTS = 8
_MAX_QUERY_NUMBERS = 4_000_000
_NO_VECTOR = np.zeros(0, np.float32)


class ChromaStore:
    """A Chroma, opened when it is needed first.

    Args:
        folder: of the embedded one; None: a server.
        headers: of every request to the server.
        timeout: seconds that the server may be silent.
        index: parameters of the HNSW graph of new collections.
        keeps_bits: of vectors in collections with the cosine metric.
        pending: file of an upsert that takes Chroma several steps, until the last is done.
        now: seconds since 1970.
    """

    def __init__(
        self,
        *,
        folder: Path | None,
        host: str,
        port: int,
        ssl: bool,
        tenant: str,
        database: str,
        headers: Mapping[str, str],
        timeout: float,
        index: Mapping[str, int],
        keeps_bits: bool,
        pending: Path,
        now: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._host, self._port, self._ssl = host, port, ssl
        self._tenant, self._database = tenant, database
        self._headers = dict(headers)
        self._timeout = timeout
        self._index = dict(index)
        self.keeps_bits = keeps_bits
        self._pending = pending
        self._opening = threading.Lock()
        self._client: Any = None
        # Whether an upsert was begun and not ended: by a process that died, or because Chroma failed.
        self._is_torn = pending.exists()
        secrets = tuple(part for value in headers.values() for part in {value, value.removeprefix("Bearer ")})
        address = "" if folder else f"{'https' if ssl else 'http'}://{host}:{port}"
        self.errors = ChromaErrors(address, secrets, now=now)

    def names(self) -> list[str]:
        with self.errors.translated():
            client = self._opened()
            found: list[str] = []
            while True:
                names = [each.name for each in client.list_collections(limit=_NAMES_PAGE, offset=len(found))]
                found += names
                if len(names) < _NAMES_PAGE:
                    return [name for each in found if (name := _from_name(each)) is not None]

    def open(self, name: str) -> Stored | None:
        from chromadb.errors import NotFoundError

        if not _NAME.fullmatch(name):
            return None
        with self.errors.translated():
            try:
                found = self._opened().get_collection(_to_name(name), embedding_function=None)
            except NotFoundError:
                return None
            return ChromaCollection(self, name, found)

    def create(self, collection: vector_pb2.Collection) -> Stored:
        from chromadb.errors import UniqueConstraintError

        metadata = MessageToDict(collection.metadata)
        kept: dict[str, Any] = {_METADATA: json.dumps(metadata, sort_keys=True, ensure_ascii=False)}
        if collection.dimension:
            kept[_DIMENSION] = collection.dimension
        with self.errors.translated():
            try:
                made = self._opened().create_collection(
                    _to_name(collection.name),
                    metadata=kept,
                    configuration={"hnsw": {"space": _SPACES[collection.metric], **self._index}},
                    embedding_function=None,
                )
            except UniqueConstraintError:
                raise collection_exists(collection.name) from None
            return ChromaCollection(self, collection.name, made)

    def drop(self, name: str) -> None:
        with self.errors.translated():
            self._opened().delete_collection(_to_name(name))

    def close(self) -> None:
        with self._opening:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def batch_size(self) -> int:
        """Most items that Chroma takes at a time, all or none."""
        return self._opened().get_max_batch_size()

    def begin(self, name: str, items: list[Item]) -> None:
        """Writes down an upsert, so that a crash between its steps does not leave a part of it."""
        request = vector_pb2.UpsertItemsRequest(
            collection=name,
            ids=[each.id for each in items],
            vectors=to_tensor(np.stack([each.vector_D for each in items])),
            documents=[each.document for each in items],
            metadatas=[each.metadata for each in items],
        )
        self._pending.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._pending.with_suffix(".tmp")
        with unfinished.open("wb") as file:
            file.write(request.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._pending)

    def end(self) -> None:
        """The upsert is whole."""
        self._pending.unlink(missing_ok=True)
        self._is_torn = False

    def tear(self) -> None:
        """The upsert has failed on the way; it is done again before anything else."""
        self._is_torn = True

    def _opened(self) -> Any:
        with self._opening:
            if self._client is None:
                self._client = self._connected()
            if self._is_torn:
                self._finish(self._client)
            return self._client

    def _finish(self, client: Any) -> None:
        """Does an upsert again that was not ended; nobody has been told that it is done."""
        from chromadb.errors import NotFoundError

        try:
            request = vector_pb2.UpsertItemsRequest.FromString(self._pending.read_bytes())
            found = client.get_collection(_to_name(request.collection), embedding_function=None)
        except (FileNotFoundError, NotFoundError):
            pass  # it was ended, or its collection was deleted
        else:
            size = client.get_max_batch_size()
            collection = ChromaCollection(self, request.collection, found)
            collection.upsert_in_steps(read_items(request, 0), size)
        self.end()

    def _connected(self) -> Any:
        import chromadb
        from chromadb.config import Settings

        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            settings = Settings(anonymized_telemetry=False)
            return chromadb.PersistentClient(str(self._folder), settings, self._tenant, self._database)
        from crucible_adapters.vector.chroma_http import TimedClient

        settings = Settings(
            anonymized_telemetry=False,
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host=self._host,
            chroma_server_http_port=self._port,
            chroma_server_ssl_enabled=self._ssl,
            chroma_server_headers=self._headers,
        )
        return TimedClient(
            settings, self._tenant, self._database, timeout=self._timeout, check=self.errors.check_response
        )


class ChromaCollection:
    """A collection of Chroma's."""

    def __init__(self, store: ChromaStore, name: str, found: Any) -> None:
        self._store = store
        self._name = name
        self._found = found
        kept = found.metadata or {}
        configuration = found.configuration
        index = configuration.get("hnsw") or configuration.get("spann") or {}
        self._metric = _METRICS[index.get("space") or "l2"]
        # The public interface does not tell it.
        self._dimension = int(found._model.dimension or kept.get(_DIMENSION) or 0)
        # A collection that another program has made has metadata of its own.
        ours = kept.get(_METADATA)
        self._metadata = from_metadata(kept) if ours is None else json.loads(ours)

    @property
    def dimension(self) -> int:
        return self._dimension

    def describe(self) -> vector_pb2.Collection:
        with self._store.errors.translated():
            count = self._found.count()
        return vector_pb2.Collection(
            name=self._name,
            metric=self._metric,
            dimension=self._dimension,
            metadata=to_struct(self._metadata) if self._metadata else None,
            num_items=count,
        )

    def upsert(self, items: list[Item]) -> tuple[int, int]:
        with self._store.errors.translated():
            size = self._store.batch_size()
            if len(items) <= size:
                return self._upsert(items)
            self._store.begin(self._name, items)
            try:
                counts = self.upsert_in_steps(items, size)
            except BaseException:
                self._store.tear()
                raise
            self._store.end()
        return counts

    def upsert_in_steps(self, items: list[Item], size: int) -> tuple[int, int]:
        """Adds or replaces items, so many at a time."""
        counts = [self._upsert(items[start : start + size]) for start in range(0, len(items), size)]
        return sum(each[0] for each in counts), sum(each[1] for each in counts)

    def _upsert(self, items: list[Item]) -> tuple[int, int]:
        present = self._found.get(ids=[each.id for each in items], include=["metadatas"])
        before = {name: metadata or {} for name, metadata in zip(present["ids"], present["metadatas"], strict=True)}
        self._found.upsert(
            ids=[each.id for each in items],
            embeddings=self._taken(np.stack([each.vector_D for each in items])),
            # Chroma merges what it has with what comes: None takes a key away, and an empty document replaces one.
            metadatas=[{**dict.fromkeys(before.get(each.id, ())), **self._kept(each)} or None for each in items],
            documents=[each.document or ("" if each.id in before else None) for each in items],
        )
        return len(items) - len(before), len(before)

    def _taken(self, vectors_ND: np.ndarray) -> np.ndarray:
        return as_taken(vectors_ND) if self._metric == vector_pb2.METRIC_COSINE else vectors_ND

    def _kept(self, item: Item) -> dict[str, Any]:
        metadata: dict[str, Any] = {to_key(key): value for key, value in item.values.items()}
        if self._metric == vector_pb2.METRIC_COSINE and self._store.keeps_bits:
            metadata[BITS] = to_bits(item.vector_D)
        return metadata

    def ids(self, wanted: Iterable[str], filter_: vector_pb2.Filter | None) -> list[str]:
        names = list(dict.fromkeys(wanted))
        with self._store.errors.translated():
            found = self._found.get(ids=names or None, where=to_where(filter_) if filter_ else None, include=[])
        return sorted(found["ids"])

    def read(self, ids: Sequence[str], *, with_vectors: bool) -> Iterator[Item]:
        include = ["documents", "metadatas", *(["embeddings"] if with_vectors else [])]
        for start in range(0, len(ids), _READ_ITEMS):
            names = list(ids[start : start + _READ_ITEMS])
            with self._store.errors.translated():
                found = self._found.get(ids=names, include=include)
                places = {name: place for place, name in enumerate(found["ids"])}
                read = [_item(found, places[name], with_vectors) for name in names if name in places]
            yield from read

    def nearest(
        self, queries_QD: np.ndarray, count: int, filter_: vector_pb2.Filter | None, left: threading.Event
    ) -> list[list[Near]]:
        queries_QD = self._taken(queries_QD)
        with self._store.errors.translated():
            where = to_where(filter_) if filter_ else None
            # Every item is looked at where there is a filter or few: how many match tells whether the graph found all.
            total = self._found.count() if where is None else len(self._found.get(where=where, include=[])["ids"])
            if total == 0:
                return [[] for _ in queries_QD]
            fetched = min(count + _SPARE_RESULTS, total)
            group = max(1, _MAX_QUERY_NUMBERS // (fetched * queries_QD.shape[1]))
            found: list[list[Near]] = []
            for start in range(0, len(queries_QD), group):
                check_waited_for(left)
                found += self._group(queries_QD[start : start + group], count, fetched, total, where, left)
        return found

    def _group(
        self,
        queries_QD: np.ndarray,
        count: int,
        fetched: int,
        total: int,
        where: dict[str, Any] | None,
        left: threading.Event,
    ) -> list[list[Near]]:
        """The nearest items of a few queries.

        Chroma gives equal distances in any order: it is asked for more than wanted, and for still more while the last
        of those is as near as the last one wanted. What its graph has lost, and a filter's few, are found by looking
        at every item.
        """
        answer = self._found.query(
            query_embeddings=queries_QD, n_results=fetched, where=where, include=["embeddings", "distances"]
        )
        found: list[list[Near]] = []
        for query_D, ids, vectors_ND in zip(queries_QD, answer["ids"], answer["embeddings"], strict=True):
            if len(ids) < fetched:
                found.append(self._among_all(query_D, count, where, left))
                continue
            vectors_ND = np.asarray(vectors_ND, np.float32)
            near = sorted(map(Near, distances(vectors_ND, query_D[np.newaxis], self._metric)[0].tolist(), ids))
            if fetched < total and near[-1].distance <= near[count - 1].distance:
                more = min(fetched * 4, total)
                found += self._group(query_D[np.newaxis], count, more, total, where, left)
            else:
                found.append(near[:count])
        return found

    def _among_all(
        self, query_D: np.ndarray, count: int, where: dict[str, Any] | None, left: threading.Event
    ) -> list[Near]:
        ids = sorted(self._found.get(where=where, include=[])["ids"])
        near: list[Near] = []
        for start in range(0, len(ids), _READ_VECTORS):
            part = self._found.get(ids=ids[start : start + _READ_VECTORS], include=["embeddings"])
            order = sorted(range(len(part["ids"])), key=part["ids"].__getitem__)
            if order:
                vectors_ND = np.asarray(part["embeddings"], np.float32)[order]
                names = [part["ids"][place] for place in order]
                (found,) = nearest(names, vectors_ND, query_D[np.newaxis], self._metric, count, left)
                near = sorted(near + found)[:count]
        return near

    def delete(self, ids: list[str]) -> None:
        with self._store.errors.translated():
            self._found.delete(ids=ids)


def _item(found: Any, place: int, with_vectors: bool) -> Item:
    kept = found["metadatas"][place] or {}
    values = from_metadata(kept)
    vector_D = (
        from_bits(kept.get(BITS), np.asarray(found["embeddings"][place], np.float32)) if with_vectors else _NO_VECTOR
    )
    return Item(
        id=found["ids"][place],
        vector_D=vector_D,
        document=found["documents"][place] or "",
        metadata=to_struct(values),
        values=values,
    )


def _to_name(name: str) -> str:
    """A collection's name as Chroma takes it: it has no two dots in a row and no IP addresses, but capitals."""
    return name.replace(".", "D") if ".." in name or _LIKE_AN_ADDRESS.fullmatch(name) else name


def _from_name(name: str) -> str | None:
    """The name of a collection of Chroma's; None: the port can't name it."""
    plain = name.replace("D", ".")
    return plain if _NAME.fullmatch(plain) and _to_name(plain) == name else None
