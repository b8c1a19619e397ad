"""Requirements: what the contract asks of an adapter, each with an id, its text and the check of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from crucible_kit.conformance.context import Calls, Context, Samples, Undo
from crucible_kit.conformance.settings import SuiteSettings

Check = Callable[[Context[Any]], Awaitable[None]]
ALL_PORTS = "all"
_ID = re.compile(r"[A-Z]{3}-[A-Z]+-[0-9]{2}")


class Stage(IntEnum):
    """When a check runs."""

    FIRST = 0
    """Before the port's own."""
    NORMAL = 1
    LAST = 2
    """After them: it looks at all the calls that were made."""
    RESTART = 3
    """It ends the adapter."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One sentence of the contract.

    Attributes:
        id: such as BLB-WRITE-02; never given to another requirement.
        port: the port it is about, or `all`.
        text: the sentence, with MUST or SHOULD.
        quote: words of the port's proto that say it, where they do.
        check: raises CheckFailed, or CheckSkipped when it says nothing about this adapter.
        capability: it holds only for adapters that declare this; empty: for all.
        without: it holds only for adapters that do not declare this; empty: for all.
        stage: when the check runs.
    """

    id: str
    port: str
    text: str
    check: Check
    quote: str = ""
    capability: str = ""
    without: str = ""
    stage: Stage = Stage.NORMAL

    @property
    def advice(self) -> bool:
        """Whether an adapter that does otherwise is told so and does not fail."""
        return "MUST" not in self.text


@dataclass(kw_only=True)
class Suite(Calls):
    """The requirements of one port, and what the checks of all ports need to call it.

    Attributes:
        settings: type of its settings.
        requirements: in the order of their definition.
    """

    settings: type[SuiteSettings] = SuiteSettings
    requirements: list[Requirement] = field(default_factory=list)

    def requirement(
        self,
        id: str,
        text: str,
        *,
        quote: str = "",
        capability: str = "",
        without: str = "",
        stage: Stage = Stage.NORMAL,
    ) -> Callable[[Check], Check]:
        """Registers the decorated function as the check of a requirement."""
        if not _ID.fullmatch(id):
            raise ValueError(f"{id!r} is no requirement's id: it is PORT-SUBJECT-NN")
        if "MUST" not in text and "SHOULD" not in text:
            raise ValueError(f"{id}: the text says neither MUST nor SHOULD")

        def register(check: Check) -> Check:
            self.requirements.append(
                Requirement(
                    id=id,
                    port=self.port,
                    text=text,
                    quote=quote,
                    check=check,
                    capability=capability,
                    without=without,
                    stage=stage,
                )
            )
            return check

        return register

    def samples(self, make: Callable[[Context[Any]], Awaitable[Samples]]) -> Callable[[Context[Any]], Awaitable[Any]]:
        """Registers the decorated function as the maker of valid requests."""
        self.make_samples = make
        return make

    def pings(self, ping: Callable[[Context[Any]], Awaitable[Any]]) -> Callable[[Context[Any]], Awaitable[Any]]:
        """Registers the decorated function as the cheap call."""
        self.ping = ping
        return ping

    def undoes(self, method: str) -> Callable[[Undo], Undo]:
        """Registers the decorated function as what takes a method's effect back."""

        def register(undo: Undo) -> Undo:
            self.undo[method] = undo
            return undo

        return register
