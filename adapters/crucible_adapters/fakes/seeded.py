"""What fakes derive from seeds and counters in place of chance and clocks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from crucible_kit.errors import InvalidArgumentError

Response = TypeVar("Response")
_EPOCH = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
_KEPT_REQUESTS = 10_000


def digest(*parts: object) -> str:
    """64 hex digits that follow from the parts."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


def content_of(message: Message) -> bytes:
    """The bytes of a message, the same for equal ones."""
    return message.SerializeToString(deterministic=True)


def logical_time(ticks: int) -> Timestamp:
    """The time after so many changes, one second each: clocks would give equal requests different answers."""
    return Timestamp(seconds=_EPOCH + ticks)


def plain(struct: Struct) -> dict[str, Any]:
    """A Struct as a JSON object."""
    return MessageToDict(struct)


def to_json(value: object) -> str:
    """JSON with sorted keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


class Requests(Generic[Response]):
    """What calls with a request id were answered."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[bytes, Response]] = {}

    def once(self, request: Any, make: Callable[[], Response]) -> Response:
        """The first answer to a request of this id.

        Raises:
            InvalidArgumentError: REQUEST_ID_REUSED when that request was another one.
        """
        key, content = request.request_id.lower(), content_of(request)
        if key not in self._answers:
            self._answers[key] = content, make()
            while len(self._answers) > _KEPT_REQUESTS:
                del self._answers[next(iter(self._answers))]
        known, answer = self._answers[key]
        if known != content:
            raise InvalidArgumentError(
                f"request_id: {request.request_id} was used for another request: use a new UUID",
                reason="REQUEST_ID_REUSED",
                metadata={"field": "request_id", "request_id": request.request_id},
            )
        return answer

    def forget(self, request_id: str) -> None:
        """Makes the id a new one again."""
        self._answers.pop(request_id.lower(), None)


def pick(choices: Sequence[Response], *parts: object) -> Response:
    """One of the choices; which one follows from the parts."""
    return choices[int(digest(*parts)[:12], 16) % len(choices)]
