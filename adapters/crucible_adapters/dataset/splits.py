"""The splits of a dataset, and the error of what is not there."""

from __future__ import annotations

from collections.abc import Sequence

from crucible_kit.errors import NotFoundError, field_error


def choose_split(uri: str, split: str, splits: Sequence[str]) -> str:
    """The split of a request: the one it names, the only one, or train.

    Raises:
        NotFoundError: DATASET_NOT_FOUND for a split that is not there.
        InvalidArgumentError: FIELD_INVALID when none is named and there are several without train.
    """
    known = ", ".join(sorted(splits))
    if split:
        if split not in splits:
            raise dataset_not_found(uri, f"it has no split {split!r}, only {known}")
        return split
    if len(splits) == 1:
        return splits[0]
    if "train" in splits:
        return "train"
    raise field_error("source.split", f"is empty, but {uri!r} has the splits {known}: name one")


def dataset_not_found(uri: str, why: str) -> NotFoundError:
    """The error of a name behind which there are no rows."""
    return NotFoundError(f"dataset {uri!r}: {why}", reason="DATASET_NOT_FOUND", metadata={"dataset": uri})
