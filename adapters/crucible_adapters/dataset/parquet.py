"""Rows of a .parquet file, as JSON objects."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crucible_adapters.dataset.arrow import to_json_value
from crucible_adapters.dataset.rows import Stamp, check_unchanged, malformed, row_digest, stack_digests
from crucible_kit.errors import InvalidArgumentError

_BATCH_ROWS = 1024


class ParquetRows:
    """The rows of one file. Opening reads it once; afterwards the row groups that a read touches are read."""

    def __init__(self, path: Path, opened: Stamp) -> None:
        """Raises INVALID_ARGUMENT DATASET_MALFORMED. `opened` is the file's stamp taken before."""
        self._path = path
        self._stamp = opened
        digests: list[bytes] = []
        try:
            with pq.ParquetFile(path) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                    for row in batch.to_pylist():
                        try:
                            digests.append(row_digest(to_json_value(row)))
                        except ValueError as error:
                            raise malformed(path, len(digests) + 1, str(error), unit="row") from error
        except (pa.ArrowException, OSError) as error:
            raise InvalidArgumentError(
                f"{path} is not a readable parquet file: {error}", reason="DATASET_MALFORMED", metadata={"file": path}
            ) from error
        check_unchanged(path, opened)
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._last_group: tuple[int, pa.Table] | None = None
        self._lock = threading.Lock()
        self.digests = stack_digests(digests)
        self.num_rows = len(digests)

    def read(self, indices: np.ndarray, fields: Collection[str] | None = None) -> list[str]:
        """These rows, whole; each row group that holds one of them is read once."""
        check_unchanged(self._path, self._stamp)
        groups = np.searchsorted(self._ends, indices, side="right")
        rows: list[str] = [""] * len(indices)
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            first = self._ends[group - 1] if group else 0
            table = self._group(int(group)).take(pa.array(indices[places] - first))
            for place, row in zip(places, table.to_pylist(), strict=True):
                rows[place] = json.dumps(to_json_value(row), ensure_ascii=False)
        check_unchanged(self._path, self._stamp)
        return rows

    def _group(self, group: int) -> pa.Table:
        # Reading on, batch after batch, mostly stays in one group.
        with self._lock:
            if self._last_group is None or self._last_group[0] != group:
                with pq.ParquetFile(self._path) as file:
                    self._last_group = (group, file.read_row_group(group))
            return self._last_group[1]
