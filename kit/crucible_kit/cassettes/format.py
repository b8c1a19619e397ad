"""The file of a recording: JSON lines, a header first, then the events of its calls, then an end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from google.protobuf.message import Message
from google.rpc import status_pb2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crucible_kit.cassettes.codec import BlobFolder, from_tree, status_from_tree
from crucible_kit.cassettes.matching import Rules
from crucible_kit.cassettes.methods import Method, find_method
from crucible_kit.chunks import atomic_file
from crucible_kit.errors import InvalidArgumentError

VERSION = 1
_EVENT_KEYS = {
    "method": {"metadata", "deadline_s"},
    "request": {"bind"},
    "half_close": set(),
    "response": {"bind"},
    "status": set(),
    "cancel": set(),
}

StepKind = Literal["request", "half_close", "response", "status", "cancel"]


class Header(BaseModel):
    """The first line."""

    model_config = ConfigDict(extra="forbid")

    crucible_cassette: int = Field(default=VERSION, description="Version of the format.")
    services: list[str] = Field(description="Full names of the services whose calls follow, sorted.")
    descriptor_sha256: dict[str, str] = Field(
        default_factory=dict,
        description="By service: SHA-256 of the proto file that defined it when it was recorded, as in the handshake.",
    )
    requires: list[str] = Field(
        default_factory=list, description="Capabilities without which an adapter can't answer like this, sorted."
    )
    clock: str = Field(default="", description="When the recording began: UTC, RFC 3339.")
    parameters: dict[str, str] = Field(
        default_factory=dict,
        description="What whoever plays the recording chooses, by name: `${set:name}`. The text says what to give.",
    )
    rules: Rules = Field(default_factory=Rules, description="What a comparison leaves out or takes approximately.")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One event of a call after its start.

    Attributes:
        line: its number in the file, from 1.
        message: of a request or response, with placeholders in its texts.
        tree: the same as the file has it.
        status, reason: how the call ended.
        bind: what the placeholders that appear here first stood for.
    """

    kind: StepKind
    line: int
    message: Message | None = None
    tree: Any = None
    status: status_pb2.Status | None = None
    reason: str = ""
    bind: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Call:
    """One recorded call.

    Attributes:
        number: as the file numbers it.
        line: where it begins.
        metadata: what the caller sent that the adapter may act on.
        deadline_s: seconds the caller gave it; None: no deadline.
        steps: its events in order; the last one is its end, a status or the caller's cancellation.
    """

    number: int
    line: int
    method: Method
    metadata: Mapping[str, str]
    deadline_s: float | None
    steps: list[Step] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether its end was recorded."""
        return bool(self.steps) and self.steps[-1].kind in ("status", "cancel")

    @property
    def end_line(self) -> int:
        """Line of its last event."""
        return self.steps[-1].line

    @property
    def requests(self) -> list[Message]:
        """Its request messages."""
        return [step.message for step in self.steps if step.kind == "request" and step.message is not None]

    @property
    def responses(self) -> list[Message]:
        """Its response messages."""
        return [step.message for step in self.steps if step.kind == "response" and step.message is not None]


@dataclass(frozen=True, kw_only=True)
class Cassette:
    """A recording that was read.

    Attributes:
        calls: those that came to their end, in the order of their starts.
        complete: whether the recorder was ended in order; False: what a crash left.
        unfinished: numbers of the calls that a crash cut off.
    """

    path: Path
    header: Header
    calls: list[Call]
    complete: bool
    unfinished: list[int]


def read_cassette(path: Path) -> Cassette:
    """Reads and checks a cassette. A file that ends early is one, with the calls that had ended by then.

    Raises:
        InvalidArgumentError: CASSETTE_INVALID with the line, CASSETTE_VERSION for a format this build does not read.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            f"{path} can't be read: {error}", reason="CASSETTE_INVALID", metadata={"path": path}
        ) from error
    reader = _Reader(path)
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        reader.take(number, line)
    # A last line that is cut is what a crash left of it.
    if lines[-1] and _is_json(lines[-1]):
        reader.take(len(lines), lines[-1])
    return reader.result()


def require_calls(cassette: Cassette, calls: Sequence[Call]) -> None:
    """Raises INVALID_ARGUMENT CASSETTE_EMPTY when `calls`, those of the cassette that count, are none: it would hold
    whatever an adapter does.
    """
    if not calls:
        other = f" but {len(cassette.calls)} that say what an adapter is" if cassette.calls else ""
        raise InvalidArgumentError(
            f"{cassette.path} holds no calls{other}: record it again, with a client that calls the adapter's port "
            "through the recorder",
            reason="CASSETTE_EMPTY",
            metadata={"path": cassette.path},
        )


def write_cassette(path: Path, header: Header, events: Iterable[Mapping[str, Any]]) -> None:
    """Writes a complete cassette; it takes `path`'s place as a whole or not at all.

    Args:
        events: as the lines have them; the bytes that they refer to are in the folder already.
    """
    events = list(events)
    calls = len({event["call"] for event in events})
    lines = [header_line(header), *(dump_line(event) for event in events), end_line(calls)]
    with atomic_file(path) as file:
        file.writelines(line.encode() for line in lines)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def dump_line(value: Mapping[str, Any]) -> str:
    """One line of a cassette, its end included: keys are sorted, but for those of the event, which begin with call."""
    ordered = {key: _sorted(each) for key, each in value.items()}
    return json.dumps(ordered, ensure_ascii=False, separators=(",", ":")) + "\n"


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


def header_line(header: Header) -> str:
    """The first line."""
    return dump_line({"crucible_cassette": VERSION, **header.model_dump(mode="json", exclude_defaults=True)})


def end_line(calls: int) -> str:
    """The last line."""
    return dump_line({"end": {"calls": calls}})


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._load = BlobFolder(path).load
        self._header: Header | None = None
        self._calls: dict[int, Call] = {}
        self._complete = False

    def take(self, number: int, line: str) -> None:
        """Takes the next line."""
        try:
            value = json.loads(line)
        except ValueError as error:
            raise self._error(number, f"is not JSON ({error})") from error
        if not isinstance(value, dict):
            raise self._error(number, "is not a JSON object")
        if self._complete:
            raise self._error(number, "comes after the end")
        if self._header is None:
            self._header = self._read_header(number, value)
        elif "end" in value:
            self._read_end(number, value)
        else:
            self._read_event(number, value)

    def result(self) -> Cassette:
        """What the lines said."""
        if self._header is None:
            raise self._error(1, "is missing: the first line is the header")
        unfinished = [call.number for call in self._calls.values() if not call.ended]
        return Cassette(
            path=self._path,
            header=self._header,
            calls=[call for call in self._calls.values() if call.ended],
            complete=self._complete,
            unfinished=unfinished,
        )

    def _error(self, line: int, problem: str, *, reason: str = "CASSETTE_INVALID") -> InvalidArgumentError:
        return InvalidArgumentError(
            f"{self._path}:{line}: {problem}", reason=reason, metadata={"path": self._path, "line": line}
        )

    def _read_header(self, line: int, value: dict[str, Any]) -> Header:
        version = value.get("crucible_cassette")
        if version is None:
            raise self._error(line, "is no header: a cassette begins with an object that has crucible_cassette")
        if version != VERSION:
            problem = f"has format {version}, this build reads {VERSION}: use the build that made it, or record again"
            raise self._error(line, problem, reason="CASSETTE_VERSION")
        try:
            return Header.model_validate(value)
        except ValidationError as error:
            raise self._error(line, f"header: {_first_problem(error)}") from error

    def _read_end(self, line: int, value: dict[str, Any]) -> None:
        unfinished = [call.number for call in self._calls.values() if not call.ended]
        if value != {"end": {"calls": len(self._calls)}} or unfinished:
            cut = f", of which {unfinished} have no end" if unfinished else ""
            raise self._error(line, f"is the end of other calls than the {len(self._calls)} before it{cut}")
        self._complete = True

    def _read_event(self, line: int, value: dict[str, Any]) -> None:
        number = value.get("call")
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise self._error(line, f"call is {number!r}, must be a number from 1")
        kinds = [kind for kind in _EVENT_KEYS if kind in value]
        if len(kinds) != 1:
            raise self._error(line, f"call {number}: an event has exactly one of {', '.join(_EVENT_KEYS)}")
        unknown = value.keys() - {"call", kinds[0]} - _EVENT_KEYS[kinds[0]]
        if unknown:
            raise self._error(line, f"call {number}: {kinds[0]} has no key {sorted(unknown)[0]!r}")
        try:
            if kinds[0] == "method":
                self._calls[number] = self._start(line, number, value)
            else:
                self._continue(line, number, value)
        except (ValueError, KeyError) as error:
            raise self._error(line, f"call {number}: {error}") from error

    def _start(self, line: int, number: int, value: dict[str, Any]) -> Call:
        if number in self._calls:
            raise ValueError(f"begins twice, first in line {self._calls[number].line}")
        method = find_method(value["method"]) if isinstance(value["method"], str) else None
        if method is None:
            raise ValueError(f"this build knows no method {value['method']!r}")
        deadline = value.get("deadline_s")
        if deadline is not None and (not isinstance(deadline, int | float) or deadline < 0):
            raise ValueError(f"deadline_s is {deadline!r}, must be seconds")
        return Call(
            number=number,
            line=line,
            method=method,
            metadata=_texts(value.get("metadata", {}), "metadata"),
            deadline_s=deadline,
        )

    def _continue(self, line: int, number: int, value: dict[str, Any]) -> None:
        call = self._calls.get(number)
        if call is None:
            raise ValueError("has not begun: its first event names the method")
        if call.ended:
            raise ValueError(f"has ended in line {call.end_line}")
        closed = any(step.kind == "half_close" for step in call.steps)
        if "request" in value:
            if closed or (call.requests and not call.method.client_streaming):
                raise ValueError("has one request more than its caller may send")
            message = from_tree(value["request"], call.method.request, self._load)
            step = Step(kind="request", line=line, message=message, tree=value["request"], bind=_bind(value))
        elif "response" in value:
            if call.responses and not call.method.server_streaming:
                raise ValueError(f"has two responses, {call.method.name} answers once")
            message = from_tree(value["response"], call.method.response, self._load)
            step = Step(kind="response", line=line, message=message, tree=value["response"], bind=_bind(value))
        elif "status" in value:
            status, reason = status_from_tree(value["status"])
            if not (status.code or call.method.server_streaming or call.responses):
                raise ValueError(f"is OK without a response, {call.method.name} answers once")
            step = Step(kind="status", line=line, status=status, tree=value["status"], reason=reason)
        else:
            kind: StepKind = "cancel" if "cancel" in value else "half_close"
            if value[kind] is not True:
                raise ValueError(f"{kind} is {value[kind]!r}, must be true")
            if kind == "half_close" and (closed or not call.method.client_streaming):
                raise ValueError("half_close stands once, after a stream of requests")
            step = Step(kind=kind, line=line)
        call.steps.append(step)


def _bind(value: Mapping[str, Any]) -> dict[str, str]:
    return _texts(value.get("bind", {}), "bind")


def _texts(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError(f"{name} is {value!r}, must be texts by name")
    return value


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
