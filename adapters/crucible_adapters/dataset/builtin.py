"""Rows that ship with the project."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, get_args

import numpy as np

from crucible_adapters.builtin import word_problems
from crucible_adapters.dataset.rows import row_digest, stack_digests

SPLITS = {"word-problems": tuple(get_args(word_problems.Split))}


class ListRows:
    """Rows in memory."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        """Raises ValueError for a row that is too large, or not text."""
        self._rows = [json.dumps(row, ensure_ascii=False) for row in rows]
        self.digests = stack_digests([row_digest(row) for row in rows])
        self.num_rows = len(rows)

    def read(self, indices: np.ndarray, fields: Collection[str] | None = None) -> list[str]:
        """These rows, whole."""
        return [self._rows[index] for index in indices]


class BuiltinRows(ListRows):
    """The rows of one split, made from a seed."""

    def __init__(self, name: str, split: word_problems.Split) -> None:
        if name not in SPLITS:
            raise ValueError(f"no builtin dataset is named {name!r}")
        super().__init__(word_problems.generate(word_problems.DEFAULT_ROWS[split], split=split))
