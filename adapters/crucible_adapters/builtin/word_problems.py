"""Arithmetic word problems with worked steps, made from a seed: the data set `builtin:word-problems`.

A row is `{"question": str, "answer": str}`. The answer has one worked step a line, each with exactly one
`a op b = c` (op is + - * /, all whole numbers), and a last line `#### c` as in GSM8K.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeVar

Split = Literal["train", "test"]
Row = dict[str, str]
T = TypeVar("T")

DEFAULT_ROWS: Final[dict[Split, int]] = {"train": 1600, "test": 128}
DEFAULT_SEED: Final = 0
MAX_ROWS: Final = 50_000
"""Far below the number of distinct questions, so that drawing a new one stays quick."""

NAMES: Final = tuple(
    "Ada Amir Ben Chen Dan Ella Emma Finn Hana Hugo Ines Ivan Kofi Lena Leo Maya Mia Nina Omar Priya Rosa Tom Wei "
    "Zoe".split()
)
THINGS: Final = tuple(
    "apples balls beads books cakes cards coins cups eggs flags hats keys lemons muffins nuts oranges pears pens plums "
    "rings shells stamps stars toys".split()
)
HOLDERS: Final = ("bags", "baskets", "boxes", "crates", "jars", "packs")
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
JOBS: Final = ("washes cars", "walks dogs", "cuts grass", "waters plants", "paints fences", "delivers papers")


class _Draw:
    """Choices from one seeded stream, through `Random.random()` alone: no other method's sequence is promised."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def one(self, choices: Sequence[T]) -> T:
        return choices[self.number(0, len(choices) - 1)]

    def two(self, choices: Sequence[T]) -> tuple[T, T]:
        """Two different ones."""
        first = self.number(0, len(choices) - 1)
        second = self.number(0, len(choices) - 2)
        return choices[first], choices[second + (second >= first)]


class _Steps:
    """Collects worked steps; every step's result is computed here and nowhere else."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._last = 0

    def add(self, before: str, a: int, op: Literal["+", "-", "*", "/"], b: int, after: str) -> int:
        self._last = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[op]
        self._lines.append(f"{before} {a} {op} {b} = {self._last} {after}.")
        return self._last

    def answer(self) -> str:
        return "\n".join([*self._lines, f"#### {self._last}"])


def _gets_more(d: _Draw, s: _Steps) -> str:
    (name, friend), thing = d.two(NAMES), d.one(THINGS)
    have, more = d.number(3, 30), d.number(2, 15)
    s.add(f"{name} has", have, "+", more, thing)
    return f"{name} has {have} {thing} and gets {more} more from {friend}. How many {thing} does {name} have now?"


def _gives_away(d: _Draw, s: _Steps) -> str:
    (name, friend), thing = d.two(NAMES), d.one(THINGS)
    have, gone = d.number(12, 40), d.number(2, 11)
    s.add(f"{name} keeps", have, "-", gone, thing)
    return f"{name} has {have} {thing} and gives {gone} to {friend}. How many {thing} does {name} keep?"


def _equal_groups(d: _Draw, s: _Steps) -> str:
    name, thing, holder = d.one(NAMES), d.one(THINGS), d.one(HOLDERS)
    groups, each = d.number(2, 9), d.number(2, 9)
    s.add(f"{name} packs", groups, "*", each, thing)
    return f"{name} packs {groups} {holder} with {each} {thing} in each. How many {thing} does {name} pack?"


def _shares(d: _Draw, s: _Steps) -> str:
    name, thing = d.one(NAMES), d.one(THINGS)
    friends, each = d.number(2, 9), d.number(2, 9)
    s.add("Each friend gets", friends * each, "/", friends, thing)
    return f"{name} shares {friends * each} {thing} equally among {friends} friends. How many does each friend get?"


def _groups_less_some(d: _Draw, s: _Steps) -> str:
    name, thing, holder = d.one(NAMES), d.one(THINGS), d.one(HOLDERS)
    groups, each = d.number(3, 9), d.number(3, 9)
    lost = d.number(2, 8)
    bought = s.add(f"{name} buys", groups, "*", each, thing)
    s.add(f"{name} keeps", bought, "-", lost, thing)
    return f"{name} buys {groups} {holder} of {each} {thing} and loses {lost}. How many {thing} does {name} keep?"


def _wages(d: _Draw, s: _Steps) -> str:
    name, job = d.one(NAMES), d.one(JOBS)
    (first, second), pay = d.two(DAYS), d.number(5, 10)
    early, late = d.number(2, 4), d.number(2, 4)
    hours = s.add(f"{name} works", early, "+", late, "hours")
    s.add(f"{name} earns", hours, "*", pay, "dollars")
    return (
        f"{name} {job} for {pay} dollars an hour: {early} hours on {first} and {late} hours on {second}. "
        f"How many dollars does {name} earn?"
    )


def _two_colours(d: _Draw, s: _Steps) -> str:
    name, thing = d.one(NAMES), d.one(THINGS)
    one, other = d.two(("red", "blue", "green", "yellow", "white", "black"))
    first, more = d.number(4, 20), d.number(2, 9)
    second = s.add(f"{name} has", first, "+", more, f"{other} {thing}")
    s.add(f"{name} has", first, "+", second, f"{thing} in all")
    return (
        f"{name} has {first} {one} {thing} and {more} more {other} {thing} than {one} ones. "
        f"How many {thing} does {name} have in all?"
    )


def _change(d: _Draw, s: _Steps) -> str:
    name, thing = d.one(NAMES), d.one(THINGS)
    count, price = d.number(2, 6), d.number(2, 6)
    paid = d.one((40, 50))
    cost = s.add(f"The {thing} cost", count, "*", price, "dollars")
    s.add(f"{name} gets back", paid, "-", cost, "dollars")
    return (
        f"{name} buys {count} {thing} for {price} dollars each and pays {paid} dollars. "
        f"How many dollars does {name} get back?"
    )


def _twice_as_many(d: _Draw, s: _Steps) -> str:
    (name, friend), thing = d.two(NAMES), d.one(THINGS)
    have = d.number(3, 20)
    other = s.add(f"{friend} has", have, "*", 2, thing)
    s.add("Together they have", have, "+", other, thing)
    return f"{name} has {have} {thing} and {friend} has twice as many. How many {thing} do they have together?"


def _pages(d: _Draw, s: _Steps) -> str:
    name = d.one(NAMES)
    days, each = d.number(2, 5), d.number(3, 8)
    rest, left = d.number(2, 5), d.number(3, 8)
    start = s.add(f"{name} first reads", days, "*", each, "pages")
    end = s.add(f"{name} then reads", rest, "*", left, "pages")
    s.add("The book has", start, "+", end, "pages")
    return (
        f"{name} reads {each} pages a day for {days} days, then {left} pages a day for {rest} days to the end. "
        f"How many pages does the book have?"
    )


def _pooled_and_shared(d: _Draw, s: _Steps) -> str:
    (name, friend), thing = d.two(NAMES), d.one(THINGS)
    friends, each = d.number(2, 6), d.number(3, 8)
    lost = d.number(2, 6)
    total = friends * each + lost
    mine = d.number(2, total - 2)
    pooled = s.add("They have", mine, "+", total - mine, thing)
    kept = s.add("They share", pooled, "-", lost, thing)
    s.add("Each friend gets", kept, "/", friends, thing)
    return (
        f"{name} has {mine} {thing} and {friend} has {total - mine}. They lose {lost} and share the rest equally "
        f"among {friends} friends. How many {thing} does each friend get?"
    )


def _sales(d: _Draw, s: _Steps) -> str:
    name, thing = d.one(NAMES), d.one(THINGS)
    price, cost = d.number(2, 5), d.number(2, 6)
    first, second = d.two(DAYS)
    early, late = d.number(2, 6), d.number(2, 6)
    sold = s.add(f"{name} sells", early, "+", late, thing)
    income = s.add(f"{name} takes", sold, "*", price, "dollars")
    s.add(f"{name} keeps", income, "-", cost, "dollars")
    return (
        f"{name} sells {early} {thing} on {first} and {late} on {second} for {price} dollars each and pays "
        f"{cost} dollars for the stall. How many dollars does {name} keep?"
    )


_TEMPLATES: Final[tuple[Callable[[_Draw, _Steps], str], ...]] = (
    _gets_more, _gives_away, _equal_groups, _shares, _groups_less_some, _wages,
    _two_colours, _change, _twice_as_many, _pages, _pooled_and_shared, _sales,
)  # fmt: skip


def split_of(question: str) -> Split:
    """The one split a question may appear in, from its hash: so no two seeds can make splits that overlap."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] < 32 else "train"


def generate(rows: int, seed: int = DEFAULT_SEED, split: Split = "train") -> list[Row]:
    """`rows` distinct rows of one split; the same arguments give the same rows on every machine.

    The rows of a smaller count are the first rows of a larger one. Raises ValueError where rows is outside
    0..MAX_ROWS or split is unknown.
    """
    if split not in DEFAULT_ROWS:
        raise ValueError(f"split is {split!r}: use one of {', '.join(DEFAULT_ROWS)}")
    if not 0 <= rows <= MAX_ROWS:
        raise ValueError(f"rows is {rows}: use a number from 0 to {MAX_ROWS}")
    draw = _Draw(f"word-problems/1/{split}/{seed}")
    made: dict[str, str] = {}
    while len(made) < rows:
        steps = _Steps()
        question = draw.one(_TEMPLATES)(draw, steps)
        if split_of(question) == split:
            made.setdefault(question, steps.answer())
    return [{"question": question, "answer": answer} for question, answer in made.items()]
