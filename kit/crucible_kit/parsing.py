"""From the bytes of a request to a message that keeps its contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from google.protobuf.message import DecodeError, Message

from crucible_kit.constraints import check_message, check_no_unknown_fields
from crucible_kit.errors import InvalidArgumentError, KitchenError

_GATEWAY = "/crucible.adapter.v1.AdapterGatewayService/"
LARGE_BYTES = 256 * 1024
"""Of a message that is looked at off the event loop."""
# One at a time: a message may take fifty times its size in memory while it is looked at.
_large_messages = ThreadPoolExecutor(1, "large-messages")

Parser = Callable[[bytes], Message]


def request_parser(method: str, deserialise: Parser, *, max_bytes: int | None = None) -> Parser:
    """What makes requests of a method from bytes.

    It raises INVALID_ARGUMENT: MESSAGE_TOO_LARGE past `max_bytes`, MESSAGE_MALFORMED, and for the services of the
    package crucible what `check_message` and `check_no_unknown_fields` raise; the latter not for tunnels.
    """
    ours = method.startswith("/crucible.")
    # Its frames may say more than this side knows: Welcome tells the version that counts. And most are large.
    strict = ours and not method.startswith(_GATEWAY)

    def parse(data: bytes) -> Message:
        if max_bytes is not None and len(data) > max_bytes:
            raise message_too_large(f"the request of {method}", len(data), max_bytes)
        try:
            request = deserialise(data)
        except (DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise InvalidArgumentError(
                f"the request of {method} is not a valid protobuf message", reason="MESSAGE_MALFORMED"
            ) from error
        if ours:
            # First what bounds how much there is to look at.
            check_message(request)
        if strict:
            check_no_unknown_fields(request)
        return request

    return parse


def message_too_large(what: str, size_bytes: int, max_bytes: int) -> InvalidArgumentError:
    """The error of a message that has too many bytes; `what` is such as `the request of /service/Method`."""
    return InvalidArgumentError(
        f"{what} has {size_bytes} bytes, at most {max_bytes} are allowed: send less in one message",
        reason="MESSAGE_TOO_LARGE",
        metadata={"size_bytes": size_bytes, "max_bytes": max_bytes},
    )


async def check_aside(message: Message, check: Callable[[Message], None] = check_message) -> None:
    """Checks a message; a large one off the event loop, which has others to serve meanwhile."""
    if message.ByteSize() < LARGE_BYTES:
        check(message)
    else:
        await asyncio.to_thread(check, message)


async def parse_in_turn(parse: Parser, data: bytes) -> Message:
    """The parsed message; a large one off the event loop, which it would hold up for seconds."""
    if len(data) < LARGE_BYTES:
        return parse(data)

    def parsed() -> Message:
        try:
            return parse(data)
        except KitchenError as error:
            # The frames it has come through would keep the message until the caller has its answer.
            raise error.with_traceback(None) from None

    return await asyncio.get_running_loop().run_in_executor(_large_messages, parsed)
