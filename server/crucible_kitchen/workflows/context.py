"""What stages see: the configuration, the context keys they declared, the ports, the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import BaseModel

from crucible.kitchen.v1 import adapter_admin_pb2
from crucible_kit.determinism import derive_seed
from crucible_kit.errors import InvalidArgumentError, field_error

if TYPE_CHECKING:
    from crucible_kitchen.store.records import CheckpointRecord

Options = TypeVar("Options", bound=BaseModel)


class Ports(Protocol):
    """Access to the ports' adapters; starts one that is not running."""

    async def stub(self, port: str) -> Any:
        """The generated stub of a port."""
        ...

    async def capabilities(self, port: str) -> frozenset[str]:
        """What the port's adapter declares."""
        ...

    def is_remote(self, port: str) -> bool:
        """Whether what serves the port is somebody else's to start, such as the provider that its adapter asks."""
        ...

    async def probe(self, port: str) -> adapter_admin_pb2.Adapter:
        """The port's adapter after asking it whether it can serve."""
        ...


class Journal(Protocol):
    """The run's log, as stages write to it."""

    async def emit(
        self, *, stage_path: str, step: int, changes: dict[str, Any] | None = None, wait: bool = True, **payload: Any
    ) -> Any:
        """Appends one event; `payload` is one member of RunEvent's oneof by name. Durable when it returns; without
        `wait`, when the next one is.
        """
        ...


class Saver(Protocol):
    """Makes a checkpoint durable together with the run's position."""

    async def save(self, context: StageContext, *, final: bool = False) -> CheckpointRecord:
        """Saves the training session of `context`; the position is that of the stage that calls it, completed."""
        ...

    async def restore(self, context: StageContext, session: Any) -> None:
        """Loads the checkpoint that the attempt goes on from into a new session."""
        ...


def select_options(options: type[Options], config: dict[str, Any]) -> Options:
    """The keys of `config` that `options` has, typed."""
    return options.model_validate({key: config[key] for key in options.model_fields if key in config})


@dataclass(frozen=True, kw_only=True)
class SubmitContext:
    """What is there to check before a run exists.

    Attributes:
        config: the whole validated configuration.
        origins: where a key's value comes from, such as "the preset tiny", for keys that the caller did not give.
    """

    config: dict[str, Any]
    ports: Ports
    origins: Mapping[str, str] = field(default_factory=dict)

    def options(self, options: type[Options]) -> Options:
        """The stage's options."""
        return select_options(options, self.config)

    def conflict(self, keys: Sequence[str], problem: str) -> InvalidArgumentError:
        """A CONFIG_INVALID about values that don't go together. It blames the first key that the caller gave, and says
        of the others where their values come from.
        """
        blamed = next((key for key in keys if key not in self.origins), keys[0])
        given_by = [f"{key} is {self.origins[key]}'s" for key in keys if key in self.origins and key != blamed]
        told = f"{problem} ({', '.join(given_by)})" if given_by else problem
        return field_error(f"config.{blamed}", told, reason="CONFIG_INVALID")


@dataclass(kw_only=True)
class RunContext:
    """Everything one attempt of a run shares.

    Attributes:
        config: the whole validated configuration.
        values: context keys by name.
        step: optimizer steps done; only the interpreter changes it.
        iterations: current iteration of each loop around, by the loop's name.
        stage_seconds: time of each stage in the step loop since the last step event.
        checkpoint: the newest checkpoint; at the start of an attempt the one it goes on from, None: from the start.
        released: others have been told of the result: the run goes on to its end whatever is asked.
        step_began_at: monotonic time at which the current iteration of the step loop began.
        position: gives the run's position as JSON, the stage that asks counted as completed.
    """

    run_id: str
    recipe: str
    workflow: str
    seed: int
    attempt: int
    config: dict[str, Any]
    config_sha256: str
    ports: Ports
    journal: Journal
    saver: Saver
    checkpoint: CheckpointRecord | None = None
    values: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    iterations: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    released: bool = False
    step_began_at: float = 0.0
    position: Callable[[], dict[str, Any]] = dict


class StageContext:
    """One stage's view of the run: it can read and write only the keys that the stage declared."""

    def __init__(self, run: RunContext, *, path: str, reads: frozenset[str], writes: frozenset[str]) -> None:
        self.run = run
        self.path = path
        self._reads = reads
        self._writes = writes

    def __getitem__(self, key: str) -> Any:
        if key not in self._reads:
            raise KeyError(f"{self.path} reads {key!r}, which it does not declare as an input")
        return self.run.values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._writes:
            raise KeyError(f"{self.path} writes {key!r}, which it does not declare as an output")
        self.run.values[key] = value

    def get(self, key: str) -> Any:
        """The key's value, or None when nobody wrote it; for rollback and clean-up, where anything may be missing."""
        return self.run.values.get(key)

    def options(self, options: type[Options]) -> Options:
        """The stage's options."""
        return select_options(options, self.run.config)

    def seed_for(self, *position: str | int) -> int:
        """A seed for one random choice of this stage, a function of the run's seed, the path, the step and
        `position`.
        """
        return derive_seed(self.run.seed, self.path, self.run.step, *position)

    async def stub(self, port: str) -> Any:
        """The generated stub of a port."""
        return await self.run.ports.stub(port)

    async def emit(self, *, changes: dict[str, Any] | None = None, wait: bool = True, **payload: Any) -> None:
        """Appends one event at this stage's path. Durable when it returns; without `wait`, when the next one is."""
        await self.run.journal.emit(stage_path=self.path, step=self.run.step, changes=changes, wait=wait, **payload)
