"""Rows that ship with the project."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import get_args

import numpy as np

from crucible_adapters.builtin import word_problems
from crucible_adapters.dataset.rows import row_digest, stack_digests

SPLITS = {"word-problems": tuple(get_args(word_problems.Split))}


class BuiltinRows:
    """The rows of one split, made from a seed and kept in memory."""

    def __init__(self, name: str, split: word_problems.Split) -> None:
        if name not in SPLITS:
            raise ValueError(f"no builtin dataset is named {name!r}")
        made = word_problems.generate(word_problems.DEFAULT_ROWS[split], split=split)
        self._rows = [json.dumps(row, ensure_ascii=False) for row in made]
        self.digests = stack_digests([row_digest(row) for row in made])
        self.num_rows = len(made)

    def read(self, indices: np.ndarray, fields: Collection[str] | None = None) -> list[str]:
        """These rows, whole."""
        return [self._rows[index] for index in indices]
