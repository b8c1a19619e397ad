"""A mutant: an adapter with one defect, and the requirements that must find it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import Channel
from tests.conformance.bindings import to_object
from tests.conformance.toy.training import CAPABILITIES, ToyTraining

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


def training_mutant(
    kind: type[ToyTraining],
    defect: str,
    *red: str,
    others: int = 0,
    capabilities: tuple[str, ...] = CAPABILITIES,
) -> Mutant:
    """A toy trainer with a defect."""
    return Mutant(
        defect=defect,
        port="training",
        open=object_of("training", kind, capabilities),
        red=red,
        others=others,
        settings={"base_model": "toy", "learning_rate": 0.05},
    )


@asynccontextmanager
async def _adapter(kind: Any) -> AsyncIterator[Channel]:
    description = kind.description
    with tempfile.TemporaryDirectory() as folder:
        adapter = kind(description.options(), AdapterContext(data_dir=Path(folder)))
        try:
            async with to_object({description.port: adapter}, {description.port: description.capabilities}) as channel:
                yield channel
        finally:
            await adapter.close()


def adapter_mutant(kind: Any, defect: str, *red: str, others: int = 0) -> Mutant:
    """A built-in adapter with a defect."""
    return Mutant(defect=defect, port=kind.description.port, open=lambda: _adapter(kind), red=red, others=others)


def changed(message: Any, **fields: Any) -> Any:
    """A copy of a message with other fields."""
    copy = type(message)()
    copy.CopyFrom(message)
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy
