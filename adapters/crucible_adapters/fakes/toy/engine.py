"""One toy engine behind the fakes of training and sampling: sessions, checkpoints, one thread that computes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from google.protobuf.message import Message
from pydantic import Field

from crucible_adapters.fakes.fixed import MODELS, fixed_time
from crucible_adapters.fakes.toy.model import ToyModel, ToySize, base_model
from crucible_adapters.fakes.toy.operations import Work, nothing
from crucible_adapters.fakes.toy.session import ToySession
from crucible_adapters.fakes.toy.store import CheckpointStore
from crucible_adapters.operations import Limits, OrderedOperations, Stamps, UnorderedOperations, digest_of
from crucible_adapters.sessions import no_session, request_id_reused, too_many_sessions
from crucible_adapters.threads import Threads
from crucible_kit.adapter import AdapterContext, AdapterOptions
from crucible_kit.errors import NotFoundError


class ToyOptions(AdapterOptions):
    """Settings of the toy engine. Training and sampling share one engine when theirs are equal."""

    seed: int = Field(default=0, ge=0, description="Seed of the base models' weights.")
    models: tuple[str, ...] = Field(default=MODELS, description="Names of the base models there are.")
    vocab_size: int = Field(default=512, ge=2, le=65536, description="Size of the vocabulary.")
    rows: int = Field(
        default=512, ge=1, le=65536, description="Rows of the bigram matrix; a token's row is its id modulo this."
    )
    max_sequence_tokens: int = Field(default=2048, ge=2, description="Longest sequence, in tokens.")
    max_sessions: int = Field(default=64, ge=1, description="Most open sessions of each service.")
    max_operations_in_flight: int = Field(default=64, ge=1, description="Most unfinished operations of a session.")
    max_tokens_in_flight: int = Field(default=2**20, ge=1, description="Most tokens in them.")
    lease_seconds: int = Field(default=1800, ge=1, description="An idle session is closed after so long.")
    hold_seconds: float = Field(default=10.0, ge=0, description="How long a call that came early waits for its turn.")


@dataclass(kw_only=True, eq=False)
class TrainingRecord:
    """An open training session."""

    session_id: str
    operations: OrderedOperations[Work]
    session: ToySession
    base_model: str
    base_model_name: str
    last_used: float = 0.0
    release: Callable[[], None] = nothing


@dataclass(kw_only=True, eq=False)
class SamplingRecord:
    """An open sampling session.

    Attributes:
        model: its weights; those of a followed session change.
        followed: the training session whose live weights it samples.
        release: frees the checkpoint it is pinned to.
    """

    session_id: str
    operations: UnorderedOperations[Work]
    model: ToyModel
    followed: TrainingRecord | None = None
    last_used: float = 0.0
    release: Callable[[], None] = nothing

    @property
    def weights_version(self) -> int:
        """Of the followed session; 0 for a base model or checkpoint."""
        return 0 if self.followed is None else self.followed.session.weights_version


Record = TypeVar("Record", TrainingRecord, SamplingRecord)
T = TypeVar("T")


@dataclass
class SessionTable(Generic[Record]):
    """The open sessions of one service.

    A session's id is a function of its request id; one that was given before has a number behind it.
    """

    kind: str
    max_sessions: int
    lease_seconds: int
    clock: Callable[[], float]
    _records: dict[str, Record] = field(default_factory=dict)
    _requests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    _given: dict[str, int] = field(default_factory=dict)

    def create(self, request_id: str, request: Message, make: Callable[[str], Record]) -> Record:
        """The session of a request id, made by the first call with the id that is given to it.

        Raises INVALID_ARGUMENT REQUEST_ID_REUSED for another payload, RESOURCE_EXHAUSTED TOO_MANY_SESSIONS.
        """
        self._expire()
        digest = digest_of(request)
        known = self._requests.get(request_id)
        if known is not None:
            if known[0] != digest:
                raise request_id_reused(request_id)
            return self.get(known[1])
        if len(self._records) >= self.max_sessions:
            raise too_many_sessions(self.kind, len(self._records), self.max_sessions)
        name = f"{self.kind}-{hashlib.sha256(request_id.encode()).hexdigest()[:20]}"
        times = self._given.get(name, 0) + 1
        session_id = name if times == 1 else f"{name}-{times}"
        record = make(session_id)
        record.last_used = self.clock()
        self._given[name] = times
        self._records[session_id] = record
        self._requests[request_id] = (digest, session_id)
        return record

    def get(self, session_id: str, *, field: str = "session_id") -> Record:
        """The session, its lease renewed. Raises NOT_FOUND SESSION_NOT_FOUND."""
        self._expire()
        record = self._records.get(session_id)
        if record is None:
            raise no_session(session_id, field)
        record.last_used = self.clock()
        return record

    async def close(self, session_id: str) -> None:
        """Closes a session after its running operation; unknown is OK."""
        record = self._take(session_id)
        if record is not None:
            await record.operations.close()
            record.release()

    async def close_all(self) -> None:
        """Closes every session."""
        for session_id in list(self._records):
            await self.close(session_id)

    def _take(self, session_id: str) -> Record | None:
        self._requests = {key: known for key, known in self._requests.items() if known[1] != session_id}
        return self._records.pop(session_id, None)

    def _expire(self) -> None:
        """Ends the sessions that nobody named for a lease, unless they have unfinished operations."""
        oldest = self.clock() - self.lease_seconds
        for session_id, record in list(self._records.items()):
            if record.last_used < oldest and not record.operations.pending:
                self._take(session_id)
                record.operations.closed = True
                record.release()


class ToyEngine:
    """What the two fakes share. Made by `join`, and gone when all who joined it have left.

    Attributes:
        clock: seconds; a test may set another before there are sessions.
        gate: nothing is computed while it is closed.
    """

    _running: dict[tuple[str, str], ToyEngine] = {}  # noqa: RUF012 - the fakes are made apart and meet here

    def __init__(self, options: ToyOptions, key: tuple[str, str]) -> None:
        self.options = options
        self._key = key
        self._users = 0
        self.clock: Callable[[], float] = time.monotonic
        self.gate = asyncio.Event()
        self.gate.set()
        self.limits = Limits(
            operations=options.max_operations_in_flight,
            tokens=options.max_tokens_in_flight,
            hold_seconds=options.hold_seconds,
        )
        self.stamps = Stamps(
            new_id=lambda sequence: f"op-{sequence}",
            wall_nanos=lambda: fixed_time().ToNanoseconds(),
            clock=lambda: self.clock(),
        )
        self.store = CheckpointStore(lambda: self.clock())
        limits = (options.max_sessions, options.lease_seconds, lambda: self.clock())
        self.training = SessionTable[TrainingRecord]("training", *limits)
        self.sampling = SessionTable[SamplingRecord]("sampling", *limits)
        self._threads = Threads("toy", 1)

    @classmethod
    def join(cls, options: ToyOptions, context: AdapterContext) -> ToyEngine:
        """The engine of a data folder and of equal options."""
        key = (str(context.data_dir.resolve()), options.model_dump_json())
        engine = cls._running.get(key) or cls(options, key)
        cls._running[key] = engine
        engine._users += 1
        return engine

    async def leave(self) -> None:
        """Ends the engine when nobody is left."""
        self._users -= 1
        if self._users == 0:
            self._running.pop(self._key, None)
            await self.sampling.close_all()
            await self.training.close_all()
            await self._threads.close()

    def compute(self, function: Callable[[], T]) -> Awaitable[T]:
        """The function's result; one runs after another, so that no step meets a sampler half way."""
        return self._threads.run(function)

    def base_model(self, name: str, *, field: str) -> ToyModel:
        """The base model of a name. Raises NOT_FOUND MODEL_NOT_FOUND."""
        if name not in self.options.models:
            raise NotFoundError(
                f"{field}: there is no model {name!r}, only {', '.join(self.options.models)}: see the option models",
                reason="MODEL_NOT_FOUND",
                metadata={"field": field, "model": name},
            )
        return base_model(name, ToySize(self.options.vocab_size, self.options.rows), self.options.seed)
