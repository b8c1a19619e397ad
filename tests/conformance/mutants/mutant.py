"""A mutant: an adapter with one defect, and the requirements that must find it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from crucible_kit.channel import Channel
from tests.conformance.bindings import to_object

OpenMutant = Callable[[], AbstractAsyncContextManager[Channel]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mutant:
    """See the module.

    Attributes:
        defect: what is wrong, in words.
        port: the port whose suite is run.
        open: a channel to it.
        red: requirements that must fail.
        others: how many more may fail because they meet the same defect.
        settings: of the suite.
        transport: the defect is about every port: all requirements are looked at.
    """

    defect: str
    port: str
    open: OpenMutant
    red: tuple[str, ...]
    others: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    transport: bool = False

    def __str__(self) -> str:
        return f"{self.port}: {self.defect}"


def object_of(port: str, make: Callable[[], Any], capabilities: tuple[str, ...] = ()) -> OpenMutant:
    """A channel to a servicer in this process."""

    def opening() -> AbstractAsyncContextManager[Channel]:
        return to_object({port: make()}, {port: capabilities})

    return opening
