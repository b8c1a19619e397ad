"""The libraries that the fake Python bridge may call: a few plain functions, and some that show what goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class CallTimeout(Exception):
    """A call would take longer than it may."""


class MemoryLimit(Exception):
    """A call would use more memory than it may."""


class Clock:
    """Time that passes only when somebody says so, and the limits of the call that is made.

    Attributes:
        now: seconds since the start.
        call_timeout: seconds that the call may take.
        memory_limit_bytes: memory that it may use.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.call_timeout = math.inf
        self.memory_limit_bytes = 2**63

    def advance(self, seconds: float) -> float:
        """Lets time pass between calls; returns the time."""
        self.now += seconds
        return self.now

    def sleep(self, seconds: float) -> None:
        """Lets time pass within the call."""
        if seconds > self.call_timeout:
            self.now += self.call_timeout
            raise CallTimeout
        self.now += seconds

    def allocate(self, num_bytes: int) -> int:
        """Uses memory, on paper; returns how much."""
        if num_bytes > self.memory_limit_bytes:
            raise MemoryLimit
        return num_bytes


class Counter:
    """An object that stays where it is.

    Attributes:
        value: what was counted so far.
        label: what it counts.
    """

    def __init__(self, value: int = 0, label: str = "") -> None:
        self.value = value
        self.label = label

    def increment(self, by: int = 1) -> int:
        """Counts on; returns the new value."""
        self.value += by
        return self.value

    def fork(self) -> Counter:
        """Another counter that goes on from here."""
        return Counter(self.value, self.label)

    def forget(self) -> None:
        """Not in the manifest."""
        self.value = 0

    @property
    def broken(self) -> int:
        """Can't be read."""
        raise RuntimeError("nobody knows")


@dataclass(frozen=True)
class Function:
    """One entry of the manifest.

    Attributes:
        call: the function.
        description: in a sentence.
        streams: whether its result is iterated over.
    """

    call: Callable[..., Any]
    description: str
    streams: bool = False


@dataclass(frozen=True, kw_only=True)
class Library:
    """What may be used of a library.

    Attributes:
        version: empty: not installed.
        methods, attributes: by class.
    """

    description: str
    version: str
    functions: Mapping[str, Function]
    methods: Mapping[type, tuple[str, ...]] = field(default_factory=dict)
    attributes: Mapping[type, tuple[str, ...]] = field(default_factory=dict)


def libraries(clock: Clock) -> dict[str, Library]:
    """The manifest."""
    return {
        "absent": Library(description="One that is not installed.", version="", functions={}),
        "limits": Library(
            description="Time and memory, on paper.",
            version="1.0",
            functions={
                "advance": Function(clock.advance, "Lets seconds pass between calls."),
                "allocate": Function(clock.allocate, "Uses so many bytes of memory."),
                "sleep": Function(clock.sleep, "Takes so many seconds."),
            },
        ),
        "math": Library(
            description="Mathematical functions.",
            version="3",
            functions={
                "factorial": Function(_factorial, "The product of the numbers from 1 to n."),
                "gcd": Function(math.gcd, "The greatest common divisor."),
                "hypot": Function(math.hypot, "The length of a vector."),
                "sqrt": Function(math.sqrt, "The square root."),
            },
        ),
        "toy": Library(
            description="Values and objects of every kind.",
            version="1.0",
            functions={
                "add": Function(_add, "The sum of a and b."),
                "count_to": Function(_count_to, "The numbers from 1 to n.", streams=True),
                "counter": Function(Counter, "A counter."),
                "echo": Function(_echo, "Its argument."),
                "fail": Function(_fail, "Raises a ValueError."),
                "repeat": Function(_repeat, "A text several times."),
                "scale": Function(_scale, "An array times a factor."),
                "size": Function(len, "The number of its items."),
                "unique": Function(set, "The set of its items."),
            },
            methods={Counter: ("fork", "increment")},
            attributes={Counter: ("broken", "label", "value")},
        ),
    }


def _factorial(n: int) -> int:
    if n > 1000:
        raise OverflowError("n is above 1000")
    return math.factorial(n)


def _add(a: Any, b: Any = 1) -> Any:
    return a + b


def _echo(value: Any) -> Any:
    return value


def _fail(message: str) -> None:
    raise ValueError(message)


def _repeat(text: str, times: int) -> str:
    # Written out for no more than is needed to be too large.
    return text * min(times, 2**25)


def _scale(array: np.ndarray, factor: float) -> np.ndarray:
    return array * np.asarray(factor, array.dtype)


def _count_to(n: int, fail_after: int | None = None) -> Iterator[int]:
    for number in range(1, n + 1):
        yield number
        if number == fail_after:
            raise ValueError(f"told to fail after {number}")
