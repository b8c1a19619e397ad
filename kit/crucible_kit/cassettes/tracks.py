"""A cassette while it is played: which calls have come, whose turn it is, what placeholders stand for.

Order. The calls of one session come in the order of the recording: one that had ended before another began must come
first; those that were under way together may come either way round. Calls without a session keep that order among
themselves, within their service. Sessions are free of each other. A call that repeats an earlier one, with the same
sequence or request id, need not come: whether a client tries again is chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from google.protobuf.message import Message

from crucible_kit.cassettes import placeholders
from crucible_kit.cassettes.fields import rewrite
from crucible_kit.cassettes.format import Call, Cassette, Step
from crucible_kit.cassettes.matching import Comparison, Difference, Rules, rules_of
from crucible_kit.cassettes.methods import ADAPTER_SERVICE

_REPEATABLE = ("sequence", "request_id")
_SESSION_FIELDS = ("session_id", "episode_id")
Order = Literal["session", "any"]


@dataclass(kw_only=True, eq=False)
class Track:
    """One cassette while it is played.

    Attributes:
        calls: those that are played in order: neither polls nor calls of AdapterService.
        before: by call: those that must come before it.
        bindings: what placeholders stand for by now.
        taken: calls that have come.
        repeats: calls that need not come.
    """

    cassette: Cassette
    rules: Rules
    calls: list[Call]
    before: dict[int, list[int]]
    bindings: dict[str, str] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    repeats: set[int] = field(default_factory=set)

    @classmethod
    def at_start(cls, cassette: Cassette, order: Order) -> Track:
        """The cassette at its beginning, with its rules."""
        calls = [call for call in cassette.calls if not call.method.is_poll and call.method.service != ADAPTER_SERVICE]
        before: dict[int, list[int]] = {}
        lanes: dict[str, list[Call]] = {}
        repeats = _repeats(calls)
        for call in calls:
            lane = lanes.setdefault(lane_of(call), [])
            before[call.number] = [each.number for each in lane if each.end_line < call.line and order != "any"]
            if call.number not in repeats:
                lane.append(call)
        rules = rules_of(cassette.path, cassette.header.rules)
        return cls(cassette=cassette, rules=rules, calls=calls, before=before, repeats=repeats)

    @property
    def played(self) -> bool:
        """Whether every call has come that had to."""
        return all(call.number in self.taken | self.repeats for call in self.calls)

    def missing_before(self, call: Call) -> list[Call]:
        """The calls that must come before a call and have not."""
        missing = set(self.before[call.number]) - self.taken
        return [each for each in self.calls if each.number in missing]

    def compare(
        self, call: Call, requests: Sequence[Message], *, closed: bool, start: int = 0
    ) -> tuple[Difference | None, dict[str, str]]:
        """Where requests first differ from a recorded call's, and what they say about its placeholders.

        Args:
            closed: whether no further request comes.
            start: the first request that is to be compared.
        """
        stream = call.method.client_streaming
        comparison = Comparison(self.rules, self.bindings, call.method.name)
        recorded = call.requests
        for index in range(start, len(requests)):
            path = f"request[{index}]" if stream else "request"
            if index >= len(recorded):
                return Difference(path, "the end of the requests", "another request"), {}
            if not comparison.compare(recorded[index], requests[index], path):
                return comparison.differences[0], {}
        if closed and len(requests) < len(recorded):
            path = f"request[{len(requests)}]"
            return Difference(path, "another request", "the end of the requests"), {}
        return None, comparison.found

    def fill(self, step: Step) -> Message:
        """A response with values in the places of its placeholders; the ids that it brings count from now on."""
        assert step.message is not None
        self.bindings.update(step.bind)
        return self.filled(step.message)

    def filled(self, message: Message) -> Message:
        """A copy with values in the places of placeholders; those that nobody has said keep their names."""
        copy = type(message)()
        copy.CopyFrom(message)

        def text(_: object, value: str) -> str:
            try:
                return placeholders.render(value, self.bindings)
            except placeholders.Unbound:
                return value

        rewrite(copy, text, lambda _, data: data)
        return copy

    def restart(self) -> None:
        """Plays it from its beginning."""
        self.bindings = {}
        self.taken = set()


def is_numbered(request: Message) -> bool:
    """Whether a request says by itself that it is the same as another: by a sequence or a request id."""
    return any(getattr(request, name, None) for name in _REPEATABLE)


def _repeats(calls: Sequence[Call]) -> set[int]:
    """The calls whose requests are those of an earlier call, number and all."""
    seen: set[tuple[str, bytes]] = set()
    found: set[int] = set()
    for call in calls:
        if len(call.requests) != 1 or not is_numbered(call.requests[0]):
            continue
        request = type(call.requests[0])()
        request.CopyFrom(call.requests[0])
        rewrite(request, lambda _, text: _referring(text), lambda _, data: data)
        key = call.method.full_name, request.SerializeToString(deterministic=True)
        if key in seen:
            found.add(call.number)
        seen.add(key)
    return found


def _referring(text: str) -> str:
    """A text in which a placeholder looks the same where it is bound as where it is used."""
    return placeholders.write(
        placeholders.Placeholder("name", part.name) if isinstance(part, placeholders.Placeholder) else part
        for part in placeholders.parse(text)
    )


def lane_of(call: Call) -> str:
    """The session that a call is about; its service when it is about none."""
    for message in (*call.requests[:1], *call.responses[:1]):
        names = message.DESCRIPTOR.fields_by_name
        holder = message.session if "session" in names else message  # type: ignore[attr-defined]
        session = next((each for name in _SESSION_FIELDS if (each := getattr(holder, name, ""))), "")
        if session:
            first = placeholders.parse(session)[0]
            return first.name if isinstance(first, placeholders.Placeholder) else session
    return call.method.service


def wrong_metadata(call: Call, metadata: Mapping[str, str]) -> Difference | None:
    """What a caller did not send as recorded."""
    for key, value in call.metadata.items():
        if placeholders.match(value, metadata.get(key, ""), {}) is None:
            return Difference(f"metadata.{key}", repr(value), repr(metadata.get(key, "")))
    return None
