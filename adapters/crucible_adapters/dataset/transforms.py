"""Transforms of rows as what they are: another order of row numbers. Field mappings leave the order alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from crucible.port.dataset.v1 import dataset_pb2
from crucible_kit.errors import FieldViolation, OutOfRangeError, field_error


def transformed_order(
    num_rows: int, transforms: Iterable[dataset_pb2.DatasetTransform], *, done: int = 0
) -> np.ndarray:
    """Numbers of the source's rows in the order the transforms give, shape [rows left], int64.

    Args:
        done: how many of the transforms the source has already gone through.

    Raises:
        OutOfRangeError: ROW_OUT_OF_RANGE when a select names a row that is not there.
        InvalidArgumentError: FIELD_INVALID for a transform that says nothing.
    """
    order = np.arange(num_rows, dtype=np.int64)
    for number, each in enumerate(transforms):
        if number < done:
            continue
        field = f"transforms[{number}]"
        match each.WhichOneof("transform"):
            case "skip":
                order = order[each.skip :]
            case "take":
                order = order[: each.take]
            case "shuffle_seed":
                order = order[np.random.default_rng(each.shuffle_seed).permutation(len(order))]
            case "select":
                order = order[checked_indices(each.select.indices, len(order), field=f"{field}.select.indices")]
            case "fields":
                pass
            case _:
                raise field_error(f"{field}.transform", "is missing: set skip, take, shuffle_seed, select or fields")
    return order


class StreamedPrefix(NamedTuple):
    """What a streamed source is read for: rows to pass over, rows to keep, and how many transforms that does."""

    skip: int
    take: int
    transforms: int


def streamed_prefix(transforms: Sequence[dataset_pb2.DatasetTransform]) -> StreamedPrefix:
    """The rows that streaming has to bring.

    Raises:
        InvalidArgumentError: FIELD_INVALID without a take, or when rows are picked or shuffled before it: that needs
            rows which are not brought.
    """
    skip = 0
    for number, each in enumerate(transforms):
        match each.WhichOneof("transform"):
            case "skip":
                skip += each.skip
            case "take":
                return StreamedPrefix(skip, each.take, number + 1)
            case "fields":
                continue
            case kind:
                raise field_error(
                    f"transforms[{number}]",
                    f"is {kind or 'empty'}: with streaming only skip and fields may come before take",
                )
    raise field_error("streaming", "needs a take among the transforms: without one every row is brought anyway")


def checked_indices(indices: Sequence[int], num_rows: int, *, field: str) -> np.ndarray:
    """Row numbers as an array of shape [n], int64. Raises OUT_OF_RANGE ROW_OUT_OF_RANGE with the first bad one."""
    array = np.asarray(indices, dtype=np.int64)
    bad = np.flatnonzero((array < 0) | (array >= num_rows))
    if len(bad):
        raise row_out_of_range(int(array[bad[0]]), num_rows, field=f"{field}[{bad[0]}]")
    return array


def row_out_of_range(index: int, num_rows: int, *, field: str) -> OutOfRangeError:
    """The error of a row number past the end."""
    description = f"is {index}, but the dataset has {num_rows} rows, numbered from 0"
    return OutOfRangeError(
        f"{field}: {description}",
        reason="ROW_OUT_OF_RANGE",
        metadata={"field": field, "index": index, "num_rows": num_rows},
        fields=[FieldViolation(field, description)],
    )
