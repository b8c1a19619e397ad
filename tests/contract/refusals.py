"""Asserting that a call is refused, and how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from crucible_kit.errors import KitchenError


@contextmanager
def refused(
    kind: type[KitchenError], reason: str, *, field: str = "", says: str = ""
) -> Iterator[pytest.ExceptionInfo[KitchenError]]:
    """The block ends with this kind of error and reason; it names the field, and its message holds `says`."""
    with pytest.raises(KitchenError) as caught:
        yield caught
    error = caught.value
    assert (type(error), error.reason) == (kind, reason), error.message
    if field:
        assert [each.field for each in error.fields] == [field], error.fields
        assert error.message.startswith(f"{field}: ")
    assert says in error.message
