"""What a store in memory keeps in a SQLite file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from google.protobuf.struct_pb2 import Struct
from sqlalchemy import Column, ForeignKey, LargeBinary, MetaData, Table, Text, bindparam, delete, select
from sqlalchemy.dialects.sqlite import insert

from crucible.port.vector.v1 import vector_pb2
from crucible_adapters.sqlite_file import SqliteFile
from crucible_adapters.vector.filters import metadata_of
from crucible_adapters.vector.items import Item

_VERSION = 1
_tables = MetaData()
_collections = Table(
    "collections",
    _tables,
    Column("name", Text, primary_key=True),
    Column("description", LargeBinary, nullable=False),  # crucible.port.vector.v1.Collection
)
_items = Table(
    "items",
    _tables,
    Column("collection", Text, ForeignKey("collections.name", ondelete="CASCADE"), primary_key=True),
    Column("id", Text, primary_key=True),
    Column("vector", LargeBinary, nullable=False),  # little-endian float32
    Column("document", Text, nullable=False),
    Column("metadata", LargeBinary, nullable=False),  # google.protobuf.Struct
    sqlite_with_rowid=False,
)


class VectorFile:
    """The file. Errors as those of SqliteFile."""

    def __init__(self, path: Path) -> None:
        self._file = SqliteFile(path, _tables, version=_VERSION)

    def load(self) -> dict[str, tuple[vector_pb2.Collection, dict[str, Item]]]:
        """Everything that is kept, by collection."""
        with self._file.transaction() as connection:
            content = {
                row.name: (vector_pb2.Collection.FromString(row.description), dict[str, Item]())
                for row in connection.execute(select(_collections))
            }
            for row in connection.execute(select(_items)):
                metadata = Struct.FromString(row._mapping["metadata"])
                content[row.collection][1][row.id] = Item(
                    id=row.id,
                    vector_D=np.frombuffer(row.vector, "<f4"),
                    document=row.document,
                    metadata=metadata,
                    values=metadata_of(metadata, field="metadata"),
                )
        return content

    def put(self, collection: vector_pb2.Collection, items: list[Item]) -> None:
        """Keeps a description and items, all or none."""
        described = insert(_collections)
        described = described.on_conflict_do_update(set_={"description": described.excluded.description})
        kept = insert(_items)
        kept = kept.on_conflict_do_update(
            set_={name: kept.excluded[name] for name in ("vector", "document", "metadata")}
        )
        rows = [
            {
                "collection": collection.name,
                "id": each.id,
                "vector": each.vector_D.astype("<f4").tobytes(),
                "document": each.document,
                "metadata": each.metadata.SerializeToString(),
            }
            for each in items
        ]
        with self._file.transaction() as connection:
            connection.execute(
                described, {"name": collection.name, "description": collection.SerializeToString(deterministic=True)}
            )
            if rows:
                connection.execute(kept, rows)

    def remove(self, collection: str, ids: list[str] | None) -> None:
        """Forgets items; None: the whole collection."""
        with self._file.transaction() as connection:
            if ids is None:
                connection.execute(delete(_collections).where(_collections.c.name == collection))
                return
            gone = delete(_items).where(_items.c.collection == collection, _items.c.id == bindparam("gone"))
            connection.execute(gone, [{"gone": each} for each in ids])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
