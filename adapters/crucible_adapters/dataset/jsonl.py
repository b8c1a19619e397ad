"""Rows of a .jsonl file: one JSON object a line, found by the line's place in the file."""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from crucible_adapters.dataset.rows import (
    MAX_ROW_BYTES,
    Stamp,
    check_unchanged,
    malformed,
    parse_row,
    row_digest,
    stack_digests,
)


class JsonlRows:
    """The rows of one file. Opening reads and checks every line once; afterwards rows are read by their place."""

    def __init__(self, path: Path, opened: Stamp) -> None:
        """Raises INVALID_ARGUMENT DATASET_MALFORMED with file and line. `opened` is the file's stamp taken before."""
        self._path = path
        self._stamp = opened
        starts, sizes, digests = array("q"), array("q"), list[bytes]()
        with path.open("rb") as file:
            place = 0
            for number, line in enumerate(_lines(file, path), 1):
                skipped = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
                content = line[skipped:]
                if content.strip():
                    try:
                        row = parse_row(content.decode())
                        digests.append(row_digest(row))
                    except UnicodeDecodeError as error:
                        raise malformed(path, number, f"is not UTF-8 (byte {error.start + 1} of the line)") from error
                    except ValueError as error:
                        raise malformed(path, number, str(error)) from error
                    starts.append(place + skipped)
                    sizes.append(len(content))
                place += len(line)
        check_unchanged(path, opened)
        self._starts = np.frombuffer(starts, dtype=np.int64) if starts else np.zeros(0, np.int64)
        self._sizes = np.frombuffer(sizes, dtype=np.int64) if sizes else np.zeros(0, np.int64)
        self.digests = stack_digests(digests)
        self.num_rows = len(digests)

    def read(self, indices: np.ndarray, fields: Collection[str] | None = None) -> list[str]:
        """The lines of these rows, without the white space around them."""
        check_unchanged(self._path, self._stamp)
        rows = []
        with self._path.open("rb") as file:
            for index in indices:
                file.seek(int(self._starts[index]))
                rows.append(file.read(int(self._sizes[index])))
        # Again: bytes that changed between the first look and the reading must not get out.
        check_unchanged(self._path, self._stamp)
        return [row.decode().strip() for row in rows]


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise malformed(path, number, f"has more than {MAX_ROW_BYTES} bytes: split it")
        yield line
