"""The text that `builtin:tiny-qwen3-base` is pretrained on: generated problems with their solutions, and plain sums.

It is no chat, and has no sentence of `builtin:word-problems`, neither of its questions nor of its worked steps.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from crucible_adapters.builtin.word_problems import DAYS, HOLDERS, JOBS, NAMES, THINGS

SEED: Final = "tiny-qwen3-base/0"
SUMS_SHARE: Final = 0.2
LARGEST_RESULT: Final = 199
PEOPLE: Final = (*NAMES, "David", "Emily", "John", "Max", "Sarah")
GOODS: Final = (*THINGS, "chickens", "games", "pizzas", "plants", "rolls", "tomatoes")
COLOURS: Final = ("red", "blue", "green", "yellow", "white", "black")
# The largest value of each number; worked steps, as what is said before | left op right = result | after; questions.
PROBLEMS: Final[tuple[tuple[dict[str, int], tuple[str, ...], tuple[str, ...]], ...]] = (
    (
        {"a": 60, "b": 40},
        ("Now there are | a + b = c | {thing}",),
        (
            "{name} has {a} {thing}. Then {friend} gives {name} {b} more. How many {thing} is that?",
            "There are {a} {thing} on the table and {name} puts {b} more there. How many {thing} are there now?",
            "{name} found {a} {thing} on {day} and {b} more on the next day. How many {thing} did {name} find in all?",
            "{name} made {a} {thing}, and {friend} made {b}. How many {thing} did they make together?",
            "If {name} has {a} {thing} and gets another {b}, how many {thing} are there?",
        ),
    ),
    (
        {"a": 90, "b": 60},
        ("That leaves | a - b = c | {thing}",),
        (
            "{name} had {a} {thing} and gave {b} of them to {friend}. How many {thing} are left?",
            "Out of {a} {thing}, {name} sold {b}. How many {thing} were not sold?",
            "There were {a} {thing} on the table until {friend} took {b}. How many {thing} are still there?",
            "{name} has {a} {thing}. If {friend} gets {b} of these, how many {thing} does {name} still have?",
            "{name} lost {b} of {a} {thing} on {day}. How many {thing} are left?",
        ),
    ),
    (
        {"a": 12, "b": 12},
        ("In all there are | a * b = c | {thing}",),
        (
            "There are {a} {holder} with {b} {thing} in each of them. How many {thing} is that?",
            "{name} has {a} {holder}, and each holds {b} {thing}. How many {thing} does {name} have?",
            "{name} fills {a} {holder} and puts {b} {thing} in each. How many {thing} are in the {holder}?",
            "Each of {a} friends brings {b} {thing}. How many {thing} do they bring?",
        ),
    ),
    (
        {"a": 100, "b": 10},
        ("For each there are | a / b = c | {thing}",),
        (
            "{name} gives {a} {thing} to {b} friends in equal parts. How many {thing} are there for each friend?",
            "{name} puts {a} {thing} into {b} {holder}, the same number in each. How many {thing} are in each?",
            "{b} friends share {a} {thing} equally. How many {thing} does one of them get?",
        ),
    ),
    (
        {"a": 10, "b": 10, "c": 20},
        ("There were | a * b = d | {thing}", "That leaves | d - c = e | {thing}"),
        (
            "{name} has {a} {holder} with {b} {thing} in each, but then loses {c}. How many {thing} are left?",
            "{friend} brought {a} {holder} of {b} {thing}. {name} ate {c} of the {thing}. How many {thing} are left?",
            "{name} buys {a} {holder}, each with {b} {thing}, and sells {c}. How many {thing} does {name} still have?",
        ),
    ),
    (
        {"a": 10, "b": 10, "c": 20},
        ("In the {holder} are | a * b = d | {thing}", "Now there are | d + c = e | {thing}"),
        (
            "{name} buys {a} {holder} of {b} {thing} and gets {c} from {friend}. How many {thing} is that?",
            "{name} had {c} {thing} and bought {a} {holder} with {b} {thing} in each. How many {thing} are there now?",
        ),
    ),
    (
        {"a": 10, "b": 8, "c": 8},
        ("That is | b + c = d | hours", "The pay is | d * a = e | dollars"),
        (
            "{name} {job} for {b} hours on {day} and {c} on the next day, at {a} dollars an hour. What is the pay?",
            "{name} gets {a} dollars an hour and works {b} hours, then {c} more. How many dollars does {name} get?",
            "An hour pays {a} dollars. {name} works {b} hours and {friend} {c} hours. How many dollars do they earn?",
        ),
    ),
    (
        {"a": 10, "b": 8, "c": 8},
        ("There are | b + c = d | children", "They get | d * a = e | {thing}"),
        (
            "{b} boys and {c} girls get {a} {thing} each. How many {thing} is that?",
            "There are {b} girls and {c} boys. Each child gets {a} {thing} from {name}. How many {thing} is that?",
        ),
    ),
    (
        {"a": 40, "b": 20},
        ("The others are | a + b = d | {thing}", "Together there are | a + d = e | {thing}"),
        (
            "{name} found {a} {thing}, and {friend} found {b} more than {name}. How many {thing} did they find in all?",
            "There are {a} {colour} {thing}, and {b} more {other} ones than {colour} ones. How many {thing} is that?",
            "{name} has {a} {colour} {thing} and {b} more of the {other} {thing}. How many {thing} is that together?",
        ),
    ),
    (
        {"a": 90, "b": 8, "c": 8},
        ("All of them cost | b * c = d | dollars", "That leaves | a - d = e | dollars"),
        (
            "{name} had {a} dollars and bought {b} {thing} at {c} dollars each. How many dollars are left?",
            "{b} {thing} cost {c} dollars each. {name} gives {friend} {a} dollars. What comes back to {name}?",
            "From {a} dollars {name} pays for {b} {thing}, {c} dollars each. How many dollars does {name} still have?",
        ),
    ),
    (
        {"a": 40},
        ("Twice that is | a * 2 = d | {thing}", "Together there are | a + d = e | {thing}"),
        (
            "{name} has {a} {thing}. {friend} has twice that many. How many {thing} is that in all?",
            "{name} sold {a} {thing} on {day} and twice as many on the next day. How many {thing} were sold?",
            "{friend} found twice as many {thing} as {name}, who found {a}. How many {thing} did they find together?",
        ),
    ),
    (
        {"a": 9, "b": 9, "c": 9, "d": 9},
        (
            "First there are | a * b = e | {thing}",
            "Then there are | c * d = f | {thing}",
            "That makes | e + f = g | {thing}",
        ),
        (
            "{name} makes {b} {thing} a day for {a} days and then {d} a day for {c} days. How many {thing} is that?",
            "{name} buys {a} {holder} of {b} {thing}, and {friend} buys {c} {holder} of {d}. How many {thing} is that?",
            "For {a} days {name} sells {b} {thing} a day, then for {c} days {d} a day. How many {thing} are sold?",
        ),
    ),
    (
        {"a": 50, "b": 30, "c": 9},
        ("Together there are | a + b = d | {thing}", "In each are | d / c = e | {thing}"),
        (
            "{name} and {friend} put {a} and {b} {thing} equally into {c} {holder}. How many {thing} are in each?",
            "{name} gives {a} {thing}, {friend} gives {b}, and {c} friends share them. How many {thing} does each get?",
        ),
    ),
    (
        {"a": 70, "b": 20, "c": 9},
        ("The rest is | a - b = d | {thing}", "One gets | d / c = e | {thing}"),
        (
            "{name} has {a} {thing} and eats {b}. Then {c} friends share the rest. How many {thing} does each one get?",
            "Of {a} {thing} {b} are lost. {name} puts the rest equally into {c} {holder}. How many {thing} are in one?",
        ),
    ),
    (
        {"a": 40, "b": 30, "c": 20, "d": 9},
        (
            "First there are | a + b = e | {thing}",
            "That leaves | e - c = f | {thing}",
            "One gets | f / d = g | {thing}",
        ),
        (
            "{name} brings {a} {thing} and {friend} brings {b}, but {c} are lost. Then {d} friends share the rest. "
            "How many {thing} does one get?",
            "From {a} {colour} and {b} {other} {thing} {name} takes {c} and puts the rest equally into {d} {holder}. "
            "How many {thing} are in each?",
        ),
    ),
    (
        {"a": 10, "b": 10, "c": 8, "d": 20},
        (
            "Sold were | a + b = e | {thing}",
            "They brought | e * c = f | dollars",
            "That leaves | f - d = g | dollars",
        ),
        (
            "{name} sold {a} {thing} on {day} and {b} on the next day, at {c} dollars each. The stall cost {d} "
            "dollars. How many dollars are left?",
            "{name} has {a} {colour} and {b} {other} {thing} and sells each for {c} dollars. Then {name} pays {d} "
            "dollars to {friend}. How many dollars are left?",
        ),
    ),
)
SPOKEN: Final = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
SUMS: Final = (
    "{a} {op} {b} = {c}",
    "{a} {spoken} {b} is {c}.",
    "What is {a} {op} {b}? {c}",
    "{a} {op} {b} = {c}, so it is {c}.",
)
STEPS: Final = (
    "{a} {op} {b} = {c}",
    "{before} {a} {spoken} {b}, so {c} {after}.",
    "{before} {a} {op} {b} = {c} {after}.",
    "{before} {a} {op} {b} = {c} {after}.",
)
ENDINGS: Final = ("#### {c}", "Answer: {c}", "The answer is {c}.", "So it is {c}.")
SPEAKERS: Final = (("Question", "Answer"), ("Problem", "Solution"), ("Teacher", "Child"))


def documents(seed: str = SEED) -> Iterator[str]:
    """Documents without end; the same seed gives the same ones."""
    draw = random.Random(seed)
    while True:
        yield _sums(draw) if draw.random() < SUMS_SHARE else _problem(draw)


def _sums(draw: random.Random) -> str:
    style = draw.choice(SUMS)
    lines: list[str] = []
    while len(lines) < 6:
        op = draw.choice("+-*/")
        a, b = (draw.randint(1, 99), draw.randint(1, 60)) if op in "+-" else (draw.randint(1, 12), draw.randint(1, 12))
        a = a * b if op == "/" else a
        if c := _result(a, op, b):
            lines.append(style.format(a=a, op=op, spoken=SPOKEN[op], b=b, c=c))
    return "\n".join(lines)


def _problem(draw: random.Random) -> str:
    limits, steps, questions = draw.choice(PROBLEMS)
    (name, friend), (colour, other) = draw.sample(PEOPLE, 2), draw.sample(COLOURS, 2)
    words = {"name": name, "friend": friend, "colour": colour, "other": other, "thing": draw.choice(GOODS)}
    words |= {"holder": draw.choice(HOLDERS), "day": draw.choice(DAYS), "job": draw.choice(JOBS)}
    numbers: dict[str, int] = {}
    worked: list[dict[str, str | int]] = []
    while not worked:
        numbers = {letter: draw.randint(2, limit) for letter, limit in limits.items()}
        worked = _work(steps, numbers)
    style, ending = draw.choice(STEPS), draw.choice(ENDINGS)
    question = draw.choice(questions).format(**words, **numbers)
    solution = "\n".join([*(style.format(**step).format(**words) for step in worked), ending.format(**worked[-1])])
    if draw.random() < 0.5:
        return question + draw.choice(("\n", "\n\n")) + solution
    (asks, answers), mark = draw.choice((*SPEAKERS, draw.sample(PEOPLE, 2))), draw.choice((": ", ":\n", "\n"))
    return f"{asks}{mark}{question}\n{answers}{mark}{solution}"


def _work(steps: tuple[str, ...], numbers: dict[str, int]) -> list[dict[str, str | int]]:
    """The steps with their numbers; none where a result is not one that the text may hold."""
    known = numbers | {"2": 2}
    worked: list[dict[str, str | int]] = []
    for step in steps:
        before, calculation, after = step.split(" | ")
        left, op, right, _, result = calculation.split()
        known[result] = _result(known[left], op, known[right])
        if not known[result]:
            return []
        words: dict[str, str | int] = {"before": before, "op": op, "spoken": SPOKEN[op], "after": after}
        worked.append(words | {"a": known[left], "b": known[right], "c": known[result]})
    return worked


def _result(left: int, op: str, right: int) -> int:
    """0 where the result is negative, no whole number or too large."""
    result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[op]
    return 0 if not 0 < result <= LARGEST_RESULT or (op == "/" and left % right) else result
