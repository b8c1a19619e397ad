"""What clients have open at the adapters: whose it is, how much there may be of it, when it ends."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message

from crucible.port.dataset.v1 import dataset_pb2
from crucible.port.environment.v1 import environment_pb2
from crucible.port.python_bridge.v1 import python_bridge_pb2
from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.training.v1 import training_pb2
from crucible_kit.errors import NotFoundError, ResourceExhaustedError, UnavailableError, field_error
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.relay.call import Call

DEFAULT_LEASE_SECONDS = 1800.0
"""Of what an adapter names no lease for, such as open datasets."""
_RETRY_SESSIONS_SECONDS = 5.0
_RETRY_TOKENS_SECONDS = 1.0

Response = TypeVar("Response")


class Kind(NamedTuple):
    """What a port's sessions are called.

    Attributes:
        noun: for messages.
        option: the server's option that limits them.
        id_field: the requests' field that names one.
        not_found: the reason of an unknown one.
        too_many: the reason of one too many.
        close: the method that ends one.
        close_request: its request.
        option_together: the server's option that limits those of all clients.
        spared_seconds: one that has been idle for longer makes way for a new one of the same caller.
    """

    noun: str
    option: str
    id_field: str
    not_found: str
    too_many: str
    close: str
    close_request: type[Message]
    option_together: str = "max_sessions_of_clients"
    spared_seconds: float = math.inf


KINDS = {
    "training": Kind(
        noun="training sessions",
        option="max_client_training_sessions",
        id_field="session_id",
        not_found="SESSION_NOT_FOUND",
        too_many="TOO_MANY_SESSIONS",
        close="CloseTrainingSession",
        close_request=training_pb2.CloseTrainingSessionRequest,
    ),
    "sampling": Kind(
        noun="sampling sessions",
        option="max_client_sampling_sessions",
        id_field="session_id",
        not_found="SESSION_NOT_FOUND",
        too_many="TOO_MANY_SESSIONS",
        close="CloseSamplingSession",
        close_request=sampling_pb2.CloseSamplingSessionRequest,
    ),
    "dataset": Kind(
        noun="datasets",
        option="max_client_datasets",
        id_field="dataset_id",
        not_found="DATASET_NOT_FOUND",
        too_many="TOO_MANY_DATASETS",
        close="CloseDataset",
        close_request=dataset_pb2.CloseDatasetRequest,
    ),
    "python_bridge": Kind(
        noun="Python sessions",
        option="max_client_python_sessions",
        id_field="session_id",
        not_found="SESSION_NOT_FOUND",
        too_many="TOO_MANY_SESSIONS",
        close="CloseSession",
        close_request=python_bridge_pb2.CloseSessionRequest,
        # A caller that died leaves its sessions to others of its name, which they must not lock out for a lease.
        spared_seconds=60.0,
    ),
    "environment": Kind(
        noun="episodes",
        option="max_client_episodes",
        id_field="episode_id",
        not_found="EPISODE_NOT_FOUND",
        too_many="TOO_MANY_EPISODES",
        close="Close",
        close_request=environment_pb2.CloseRequest,
        option_together="max_episodes_of_clients",
    ),
}


class Place(NamedTuple):
    """Room for one session.

    Attributes:
        key: the request that asked for it: asked again, it takes no more room.
        full: whether it trains every weight, and so holds a whole model.
    """

    caller: str
    port: str
    key: Hashable
    full: bool = False


@dataclass(kw_only=True, eq=False)
class Entry:
    """One open session.

    Attributes:
        instance_id: of the adapter that has it; another instance does not.
        base_model: as the caller named it.
        max_sequence_tokens: the most tokens of a sequence, prompt and completion together.
        follows: the training session whose weights it samples from.
        tokens: in flight, by the sequence number of the call they came with.
        operations: sequence numbers by operation, of calls that hold tokens.
        calls: at work now.
        last_used: monotonic time at which the last call ended.
    """

    place: Place
    session_id: str
    instance_id: str
    lease_seconds: float = DEFAULT_LEASE_SECONDS
    base_model: str = ""
    max_sequence_tokens: int = 0
    follows: Entry | None = None
    tokens: dict[Hashable, int] = field(default_factory=dict)
    operations: dict[str, Hashable] = field(default_factory=dict)
    calls: int = 0
    last_used: float = 0.0

    @property
    def port(self) -> str:
        """The port it belongs to."""
        return self.place.port

    @property
    def caller(self) -> str:
        """Whose it is."""
        return self.place.caller


class Sessions:
    """The open sessions of all clients.

    Args:
        options: has the limits.
        instance_of: names the instance of a port's adapter that runs now; None: none does. Another one has no session.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        options: ServerOptions,
        instance_of: Callable[[str], str | None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._instance_of = instance_of
        self._clock = clock
        self._entries: dict[tuple[str, str], Entry] = {}
        self._opening: Counter[Place] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._tokens: Counter[str] = Counter()

    # Opening and closing

    @contextmanager
    def reserved(self, place: Place) -> Iterator[None]:
        """Keeps a place for a session that is being opened.

        Raises:
            ResourceExhaustedError: TOO_MANY_SESSIONS, TOO_MANY_DATASETS or TOO_MANY_EPISODES.
        """
        self._check_room(place)
        self._opening[place] += 1
        try:
            yield
        finally:
            self._opening[place] -= 1
            self._opening += Counter()  # drops what is zero

    async def open(self, place: Place, make: Callable[[], Awaitable[tuple[Entry, Response]]]) -> Response:
        """What `make` answers, its session added. A caller that goes away does not stop it: the adapter would open the
        session all the same, and nobody would know whose it is.

        Raises:
            ResourceExhaustedError: TOO_MANY_SESSIONS or TOO_MANY_EPISODES.
        """

        async def opened() -> Response:
            with self.reserved(place):
                entry, response = await make()
                self.add(entry)
                return response

        task = asyncio.create_task(opened())
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone

    def make_way(self, place: Place) -> Entry | None:
        """Forgets the session that its caller has left idle for longest, if there is none too many but for it; None:
        that is not called for, or all are spared.
        """
        kind, places, now = KINDS[place.port], self._places(place.port), self._clock()
        own = sum(each.caller == place.caller for each in places)
        if place in places or own < getattr(self._options, kind.option):
            return None
        idle = [
            each
            for each in self._current()
            if (each.caller, each.port) == (place.caller, place.port)
            and not each.calls
            and now - each.last_used > kind.spared_seconds
        ]
        oldest = min(idle, key=lambda each: each.last_used, default=None)
        if oldest is not None:
            self.drop(oldest)
        return oldest

    def _places(self, port: str) -> set[Place]:
        places = {entry.place for entry in self._current() if entry.port == port}
        return places | {each for each in self._opening if each.port == port}

    def _check_room(self, place: Place) -> None:
        places = self._places(place.port)
        if place in places:
            return
        kind = KINDS[place.port]
        own = sum(each.caller == place.caller for each in places)
        _check(kind, own, f"you have {own} open {kind.noun}", kind.option, getattr(self._options, kind.option))
        together, option = len(places), kind.option_together
        _check(kind, together, f"clients have {together} open {kind.noun}", option, getattr(self._options, option))
        if place.full:
            full, option = sum(each.full for each in places), "max_full_sessions_of_clients"
            what = f"clients have {full} open {kind.noun} that train every weight"
            _check(kind, full, what, option, getattr(self._options, option))

    def count(self, port: str) -> int:
        """How many of a port are open, or being opened, by all clients together."""
        opening = sum(count for place, count in self._opening.items() if place.port == port)
        return opening + sum(entry.port == port for entry in self._current())

    def add(self, entry: Entry) -> None:
        """Takes a session in. One that is here already, asked for again, stays as it is."""
        key = entry.port, entry.session_id
        known = self._entries.get(key)
        if known is not None:
            if known.place == entry.place and known.instance_id == entry.instance_id:
                known.last_used = self._clock()
                return
            self.drop(known)
        entry.last_used = self._clock()
        self._entries[key] = entry

    def drop(self, entry: Entry) -> None:
        """Forgets a session and what it held."""
        if self._entries.get((entry.port, entry.session_id)) is entry:
            del self._entries[entry.port, entry.session_id]
        for key in list(entry.tokens):
            self.release(entry, key)

    async def close(self) -> None:
        """Ends what is being opened."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Using

    def find(self, caller: str, port: str, session_id: str) -> Entry | None:
        """The caller's session at the adapter that runs now."""
        entry = self._entries.get((port, session_id))
        return entry if entry is not None and entry.caller == caller and self._is_current(entry) else None

    def get(self, caller: str, port: str, session_id: str, *, field: str = "") -> Entry:
        """As find.

        Raises:
            NotFoundError: SESSION_NOT_FOUND, DATASET_NOT_FOUND or EPISODE_NOT_FOUND: unknown, somebody else's, or gone
                with its adapter.
        """
        entry = self.find(caller, port, session_id)
        if entry is None:
            raise _not_found(port, session_id, field)
        return entry

    def _current(self) -> list[Entry]:
        """The sessions whose adapter still has them."""
        return [entry for entry in list(self._entries.values()) if self._is_current(entry)]

    def _is_current(self, entry: Entry) -> bool:
        if entry.instance_id == self._instance_of(entry.port):
            return True
        self.drop(entry)
        return False

    @contextmanager
    def using(self, call: Call, session_id: str) -> Iterator[Entry]:
        """The caller's session for a call to its adapter. Forgets it when the adapter has lost it.

        Raises:
            NotFoundError: SESSION_NOT_FOUND, DATASET_NOT_FOUND or EPISODE_NOT_FOUND.
        """
        entry = self.get(call.caller, call.port, session_id)
        entry.calls += 1
        try:
            yield entry
        except NotFoundError as error:
            kind = KINDS[call.port]
            # The adapter may mean another one, such as the training session that this one follows.
            if error.reason == kind.not_found and error.metadata.get(kind.id_field, session_id) == session_id:
                self.drop(entry)
            raise
        except UnavailableError as error:
            if not self._is_current(entry):
                raise _not_found(call.port, session_id) from error
            raise
        finally:
            entry.calls -= 1
            for each in (entry, entry.follows):
                if each is not None:
                    each.last_used = self._clock()

    def pop_expired(self) -> list[Entry]:
        """Forgets the sessions that no call has named for a lease; returns those that their adapters still have."""
        now = self._clock()
        expired = [each for each in self._current() if not each.calls and now - each.last_used > each.lease_seconds]
        for entry in expired:
            self.drop(entry)
        return expired

    # Tokens in flight

    def hold(self, entry: Entry, key: Hashable, tokens: int, *, field: str, fix: str) -> bool:
        """Counts the tokens of a call until they are released; False: they were counted before.

        Args:
            field, fix: what a message about too many blames and advises.

        Raises:
            InvalidArgumentError: FIELD_INVALID, more than the caller may ever have.
            ResourceExhaustedError: TOO_MANY_TOKENS.
        """
        if key in entry.tokens:
            return False
        limit, held = self._options.max_client_tokens_in_flight, self._tokens[entry.caller]
        if tokens > limit:
            problem = f"makes {tokens} tokens, a client may have {limit} in flight (max_client_tokens_in_flight): {fix}"
            raise field_error(field, problem)
        if held + tokens > limit:
            raise ResourceExhaustedError(
                f"your unfinished calls have {held} tokens, and {tokens} more would pass the limit of {limit} "
                "(max_client_tokens_in_flight): await their operations, cancel them or close their sessions first",
                reason="TOO_MANY_TOKENS",
                metadata={
                    "limit": limit,
                    "in_flight": held,
                    "tokens": tokens,
                    "option": "max_client_tokens_in_flight",
                },
                retry_delay=_RETRY_TOKENS_SECONDS,
            )
        entry.tokens[key] = tokens
        self._tokens[entry.caller] += tokens
        return True

    def release(self, entry: Entry, key: Hashable) -> None:
        """Undoes a hold; without effect when there is none."""
        self._tokens[entry.caller] -= entry.tokens.pop(key, 0)
        if not self._tokens[entry.caller]:
            del self._tokens[entry.caller]


def _not_found(port: str, session_id: str, field: str = "") -> NotFoundError:
    kind = KINDS[port]
    return NotFoundError(
        f"{field or kind.id_field}: you have none of the {kind.noun} open as {session_id!r}: open one",
        reason=kind.not_found,
        metadata={kind.id_field: session_id},
    )


def _check(kind: Kind, count: int, what: str, option: str, limit: int) -> None:
    if count >= limit:
        raise ResourceExhaustedError(
            f"{what}, at most {limit} are allowed ({option}): close one first",
            reason=kind.too_many,
            metadata={"limit": limit, "open": count, "option": option},
            retry_delay=_RETRY_SESSIONS_SECONDS,
        )
