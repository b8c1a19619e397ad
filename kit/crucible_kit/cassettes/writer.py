"""Writes calls into a cassette as they happen."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from google.rpc import status_pb2

from crucible_kit.cassettes.codec import BlobFolder, reason_of, status_to_tree, to_tree
from crucible_kit.cassettes.fields import Place, drop_unreadable, rewrite, rewrite_keys
from crucible_kit.cassettes.format import Header, dump_line, end_line, header_line
from crucible_kit.cassettes.matching import Rules
from crucible_kit.cassettes.methods import Method, descriptor_sha256, services
from crucible_kit.cassettes.naming import Namer
from crucible_kit.cassettes.placeholders import Part, Placeholder, write
from crucible_kit.cassettes.redaction import Redactor, secret_of
from crucible_kit.chunks import atomic_file
from crucible_kit.errors import AlreadyExistsError, field_error

logger = logging.getLogger(__name__)

_SHORTEST_PARAMETER = 4
_ROUGH_SECONDS = 10
# What an adapter may act on; the rest says who calls and how.
_METADATA_PREFIX = "crucible-"


class CassetteWriter:
    """A cassette that grows with every event and is complete when it is closed. Threads may share it.

    What a crash leaves is a cassette with the calls that had ended by then.

    Args:
        path: a new file.
        requires: capabilities without which an adapter can't answer like this.
        parameters: what whoever plays the recording chooses: value now and description, by name.
        redactor: knows the secrets that stand in no field for secrets.
        rules: what comparisons with it leave out or take approximately.
        clock: when the recording begins. None: now.

    Attributes:
        calls: how many have begun.

    Raises:
        AlreadyExistsError: CASSETTE_EXISTS.
        InvalidArgumentError: FIELD_INVALID for a parameter's value of less than four characters.
    """

    def __init__(
        self,
        path: Path,
        *,
        requires: Iterable[str] = (),
        parameters: Mapping[str, tuple[str, str]] | None = None,
        redactor: Redactor | None = None,
        rules: Rules | None = None,
        clock: datetime | None = None,
    ) -> None:
        parameters = parameters or {}
        for name, (value, _) in parameters.items():
            if len(value) < _SHORTEST_PARAMETER:
                problem = f"{value!r} is shorter than {_SHORTEST_PARAMETER} characters, it would be found everywhere"
                raise field_error(f"parameters[{name!r}]", problem)
        self._path = path
        self._blobs = BlobFolder(path)
        self._redactor = redactor or Redactor()
        self._namer = Namer({name: value for name, (value, _) in parameters.items()})
        self._lock = threading.Lock()
        self.calls = 0
        self._open: dict[int, dict[str, Any] | None] = {}
        self._header = Header(
            services=[],
            requires=sorted(requires),
            clock=(clock or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            parameters={name: description for name, (_, description) in parameters.items()},
            rules=rules or Rules(),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = path.open("x", encoding="utf-8")
        except FileExistsError as error:
            raise AlreadyExistsError(
                f"{path} exists: name another file, or delete it first", reason="CASSETTE_EXISTS"
            ) from error
        self._services: set[str] = set()
        # Which of them will be called is known in the end; a crash leaves the longer list.
        self._write(header_line(self._with_services(services())))

    def _with_services(self, names: Iterable[str]) -> Header:
        names = sorted(names)
        return self._header.model_copy(
            update={"services": names, "descriptor_sha256": {name: descriptor_sha256(name) for name in names}}
        )

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def start(self, method: Method, metadata: Iterable[tuple[str, str | bytes]], deadline: float | None) -> CallWriter:
        """Begins a call. `deadline`: seconds that its caller gives it."""
        kept = {}
        for key, value in metadata:
            if isinstance(value, str) and key == "authorization":
                self._redactor.learn(value.rpartition(" ")[2], "token")
            elif isinstance(value, str) and key.startswith(_METADATA_PREFIX):
                kept[key] = write([value])
        with self._lock:
            self.calls += 1
            self._services.add(method.service)
            event: dict[str, Any] = {"call": self.calls, "method": method.full_name}
            if kept:
                event["metadata"] = kept
            if deadline is not None:
                # A deadline that came over a wire is off by the time on the way.
                event["deadline_s"] = int(deadline) if deadline >= _ROUGH_SECONDS else round(deadline, 1)
            # Written with what comes next: a request may tell that its metadata hold a secret.
            self._open[self.calls] = event
            return CallWriter(self, self.calls)

    def close(self) -> None:
        """Makes the file complete. Calls without an end are written as cut off by their callers."""
        with self._lock:
            if self._file.closed:
                return
            for number in sorted(self._open):
                self._event(number, cancel=True)
            self._file.close()
            with self._path.open("rb") as written, atomic_file(self._path) as file:
                written.readline()
                file.write(header_line(self._with_services(self._services)).encode())
                for line in written:
                    # Once more, for what was learned to be a secret after it had been said.
                    file.write(dump_line(self._hidden(json.loads(line))).encode())
                file.write(end_line(self.calls).encode())

    def _event(self, number: int, **event: Any) -> None:
        if number not in self._open or self._file.closed:
            return
        start = self._open[number]
        if start is not None:
            self._open[number] = None
            self._write(dump_line(self._hidden(start)))
        self._write(dump_line({"call": number, **event}))

    def _hidden(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event without what is known to be secret by now."""
        bind = event.pop("bind", None)
        hidden = self._redactor.tree(event)
        # Values of names are no texts with placeholders.
        return hidden if bind is None else {**hidden, "bind": {key: self._redactor.key(bind[key]) for key in bind}}

    def _message(self, call: CallWriter, kind: str, message: Message) -> None:
        copy = type(message)()
        copy.CopyFrom(message)
        if drop_unreadable(copy):
            logger.warning(
                "%s has fields that this build does not know; they are not recorded", message.DESCRIPTOR.full_name
            )
        with self._lock:
            bind: dict[str, str] = {}
            self._hide(copy, call, kind, bind)
            event: dict[str, Any] = {kind: to_tree(copy, self._blobs.keep)}
            if bind:
                event["bind"] = bind
            self._event(call.number, **event)

    def _hide(self, message: Message, call: CallWriter, kind: str, bind: dict[str, str]) -> None:
        """Puts placeholders in the places of secrets and ids."""
        self._redactor.learn_from(message)
        rewrite_keys(message, self._redactor.key)
        if kind == "request" and not call.scope:
            call.scope = getattr(message, "session_id", "")
        name = self._namer.request if kind == "request" else self._namer.response

        def text(place: Place, value: str) -> str:
            if place.secret:
                return secret_of(place)
            parts = self._redactor.parts(value)
            if parts == [value] or not value:
                return write(name(place, value, call.scope, bind))
            return write(self._named(parts))

        def data(place: Place, value: bytes) -> bytes:
            return secret_of(place).encode() if place.secret else self._redactor.data(value)

        rewrite(message, text, data)

    def _named(self, parts: list[Part]) -> list[Part]:
        """Parts with names in place of the ids in the literal ones."""
        return [
            piece for part in parts for piece in ([part] if isinstance(part, Placeholder) else self._namer.inside(part))
        ]

    def _status(self, call: CallWriter, status: status_pb2.Status, reason: str) -> None:
        copy = status_pb2.Status()
        copy.CopyFrom(status)
        drop_unreadable(copy)
        with self._lock:
            reason = self._redactor.key(reason_of(copy) or reason)
            rewrite(
                copy,
                lambda _, text: write(self._named(self._redactor.parts(text))),
                lambda _, data: self._redactor.data(data),
            )
            self._event(call.number, status=status_to_tree(copy, reason))
            self._open.pop(call.number, None)

    def _cancel(self, call: CallWriter) -> None:
        with self._lock:
            self._event(call.number, cancel=True)
            self._open.pop(call.number, None)


class CallWriter:
    """One call of a cassette that is being written. What comes after its end is not written.

    Attributes:
        scope: the session that it is about; empty: none.
    """

    def __init__(self, writer: CassetteWriter, number: int) -> None:
        self._writer = writer
        self.number = number
        self.scope = ""

    def request(self, message: Message) -> None:
        """One request message."""
        self._writer._message(self, "request", message)

    def half_close(self) -> None:
        """The end of a stream of requests."""
        with self._writer._lock:
            self._writer._event(self.number, half_close=True)

    def response(self, message: Message) -> None:
        """One response message."""
        self._writer._message(self, "response", message)

    def status(self, status: status_pb2.Status, reason: str = "") -> None:
        """The end. `reason`: of the crucible-reason trailer, for adapters that send no details."""
        self._writer._status(self, status, reason)

    def cancel(self) -> None:
        """The end, by the caller."""
        self._writer._cancel(self)
