"""Errors that tell from which port's adapter they came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from crucible_kit.errors import KitchenError


@contextmanager
def errors_of(port: str) -> Iterator[None]:
    """Notes the port on every KitchenError that comes out of the block."""
    try:
        yield
    except KitchenError as error:
        error.port = error.port or port
        raise
