"""What a stage is, and the registry of stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from crucible.kitchen.v1 import catalog_pb2
from crucible_kit.adapter import to_struct
from crucible_kitchen.workflows.context import StageContext, SubmitContext

# Counts of rows, steps and tokens end here: past it they don't fit the wire's integers, and no run gets there.
MAX_COUNT = 1_000_000_000


class StageOptions(BaseModel):
    """Base of a stage's options: the configuration keys it owns. Strict: a string is not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Kind(Enum):
    """How long an output lives, and how it comes back when a run resumes."""

    VALUE = "value"
    """JSON; stored with the run's position. One that a set-up stage writes must come out the same on resume."""
    HANDLE = "handle"
    """A live object; its set-up stage runs again on resume and acquires it anew."""
    TRANSIENT = "transient"
    """Lives until the iteration ends; no node after a saved position may read it."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """A context key that a stage writes."""

    key: str
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class PortUse:
    """A port that a stage calls, and the capabilities it always needs there."""

    port: str
    capabilities: tuple[str, ...] = ()


class Stage:
    """One kind of work. Subclasses set the class attributes and implement `run`.

    A stage holds no state of its own: everything lives in the context, so that a run can go on in another process.

    Attributes:
        name: as trees and events write it.
        description: what it does; not empty.
        version: of its behaviour, semver.
        options: the configuration keys it owns.
        inputs: context keys it reads.
        outputs: context keys it writes.
        ports: what it calls.
        metrics: names it records, from the catalogue.
        events: payloads it writes beside those of the interpreter.
        setup: it acquires handles and runs again on resume.
        saves_position: it commits the run's position.
        completes_step: after it one more optimizer step is done.
        releases: after it others know of the result: it is too late to cancel or pause, and the run completes.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    version: ClassVar[str] = "1.0.0"
    options: ClassVar[type[StageOptions]] = StageOptions
    inputs: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[Output, ...]] = ()
    ports: ClassVar[tuple[PortUse, ...]] = ()
    metrics: ClassVar[tuple[str, ...]] = ()
    events: ClassVar[tuple[str, ...]] = ()
    setup: ClassVar[bool] = False
    saves_position: ClassVar[bool] = False
    completes_step: ClassVar[bool] = False
    releases: ClassVar[bool] = False

    async def validate(self, context: SubmitContext) -> None:
        """Checks at submit what can be known before work. Raises a KitchenError that names the key and the fix."""

    async def run(self, context: StageContext) -> None:
        """Does the work. Raises a KitchenError when it can't."""
        raise NotImplementedError

    async def rollback(self, context: StageContext, error: BaseException) -> None:
        """Undoes what `run` did outside the context, after a failure or cancellation. Never deletes a checkpoint."""

    def describe(self) -> catalog_pb2.Stage:
        """The stage as the catalogue sends it."""
        fields = self.options.model_fields
        return catalog_pb2.Stage(
            name=self.name,
            description=self.description,
            version=self.version,
            required=sorted(key for key, field in fields.items() if field.is_required()),
            optional=sorted(key for key, field in fields.items() if not field.is_required()),
            options_schema=to_struct(self.options.model_json_schema()),
            inputs=self.inputs,
            outputs=[output.key for output in self.outputs],
            ports=[use.port for use in self.ports],
            metrics=self.metrics,
            events=self.events,
        )


class StageRegistry:
    """Stages by name."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._stages: dict[str, Stage] = {}
        for stage in stages:
            if stage.name in self._stages:
                raise ValueError(f"two stages are named {stage.name}")
            if not stage.description:
                raise ValueError(f"stage {stage.name} has no description")
            self._stages[stage.name] = stage

    def __getitem__(self, name: str) -> Stage:
        try:
            return self._stages[name]
        except KeyError:
            raise ValueError(f"no stage is named {name!r}; the stages are {', '.join(sorted(self._stages))}") from None

    def __iter__(self) -> Iterator[Stage]:
        return iter(sorted(self._stages.values(), key=lambda stage: stage.name))


def option_defaults(options: type[BaseModel]) -> dict[str, Any]:
    """Defaults of the keys that have one."""
    return {
        key: field.get_default(call_default_factory=True)
        for key, field in options.model_fields.items()
        if not field.is_required()
    }
