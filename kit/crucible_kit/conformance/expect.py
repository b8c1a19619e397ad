"""What a check says when an adapter does not do as the contract says."""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncIterable, Awaitable, Iterator, Mapping, Sequence
from typing import Any

from crucible_kit.errors import KitchenError

_SHOWN_CHARACTERS = 600


class CheckFailed(Exception):
    """The adapter does something else.

    Attributes:
        expected: what the contract asks for.
        got: what came.
    """

    def __init__(self, expected: str, got: object) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected = expected
        self.got = shorten(str(got))


class CheckSkipped(Exception):
    """The check says nothing about this adapter; the text says why."""


def shorten(text: str) -> str:
    """A text for a report: long ones lose their middle."""
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]} … {text[-half:]}"


def check(holds: bool, expected: str, got: object) -> None:
    """Raises CheckFailed unless it holds."""
    if not holds:
        raise CheckFailed(expected, got)


def check_equal(got: object, expected: object, what: str) -> None:
    """Raises CheckFailed unless both are equal; `what` names the thing."""
    if got != expected:
        raise CheckFailed(f"{what} to be {shorten(repr(expected))}", repr(got))


def check_close(got: float, expected: float, what: str, *, relative: float, absolute: float = 0.0) -> None:
    """Raises CheckFailed unless two numbers are as close as said. NaN is close to nothing."""
    if not math.isclose(got, expected, rel_tol=relative, abs_tol=absolute):
        raise CheckFailed(f"{what} to be {expected!r} (within {relative:g} of it)", repr(got))


def check_ids(got: Sequence[Any], expected: Sequence[Any], what: str) -> None:
    """As check_equal for long lists: tells the first place at which they differ."""
    for place, (one, other) in enumerate(zip(got, expected, strict=False)):
        if one != other:
            raise CheckFailed(f"{what}[{place}] to be {other!r}", repr(one))
    if len(got) != len(expected):
        raise CheckFailed(f"{what} to have {len(expected)} entries", len(got))


def one_by_one(calls: Mapping[str, Awaitable[Any]]) -> Iterator[tuple[str, Awaitable[Any]]]:
    """The calls, which begin when they are awaited; those that a failure keeps from it are given up quietly."""
    rest = dict(calls)
    try:
        for name in list(rest):
            yield name, rest.pop(name)
    finally:
        for call in rest.values():
            if inspect.iscoroutine(call):
                call.close()


async def check_refused(call: Awaitable[Any], code: str, *reasons: str, what: str = "the call") -> KitchenError:
    """The error of a call that must end with this code (such as NOT_FOUND; several are told apart by `|`) and one of
    these reasons.

    Raises:
        CheckFailed: it was answered, or refused otherwise.
    """
    expected = f"{what} to be refused with {code} {' or '.join(reasons)}".rstrip()
    try:
        answer = await call
    except KitchenError as error:
        check_is(error, code, *reasons, expected=expected)
        return error
    raise CheckFailed(expected, f"an answer: {describe(answer)}")


def check_is(error: KitchenError, code: str, *reasons: str, expected: str) -> None:
    """Raises CheckFailed unless the error has this code and one of these reasons."""
    if error.code.name not in code.split("|") or (reasons and error.reason not in reasons):
        raise CheckFailed(expected, describe_error(error))


def describe_error(error: KitchenError) -> str:
    """Code, reason and message."""
    return f"{error.code.name} {error.reason}: {error.message}"


def describe(answer: Any) -> str:
    """An answer in one line."""
    return " ".join(str(answer).split()) or "(empty)"


async def collect(stream: AsyncIterable[Any]) -> list[Any]:
    """All messages of a stream."""
    return [each async for each in stream]
