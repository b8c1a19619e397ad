"""Generated hostile input for the workers of the Python bridge, each followed by a normal call: part of `make soak`.

    python -m tests.python_bridge.soak [--inputs 100] [--seed 0] [--at-once 2]

Prints what became of each class of input and ends with status 1 when a call has not ended, has ended in a way that its
class does not, when a normal call after one failed, or when processes or open files are left.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from crucible_kit.errors import KitchenError
from tests.contract.test_python_bridge import REFERENCE, Session, opened
from tests.python_bridge.conftest import TOY, bridge

CPU_SECONDS = 1
WALL_SECONDS = 10.0
MEMORY_BYTES = 192 * 1024 * 1024
RESULT_BYTES = 64 * 1024
STOPPED = {"CALL_TIMEOUT", "MEMORY_LIMIT"}
RAISED = {"PYTHON_EXCEPTION"}
ANSWERED = {"an answer"}

Call = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Class:
    """A class of hostile input.

    Attributes:
        make: one input of it.
        ends: how its calls may end: reasons of errors, or "an answer".
    """

    make: Callable[[random.Random], Call]
    ends: set[str]


@dataclass
class Outcome:
    """What became of a class.

    Attributes:
        seconds: of each call.
        reasons: how often each.
        problems: what should not have been.
    """

    seconds: list[float] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def _digits(chance: random.Random, least: int = 5) -> str:
    return str(chance.randint(least, 9))


def _power(chance: random.Random) -> Call:
    return "sympy.simplify", ("**".join(_digits(chance) for _ in range(chance.randint(4, 7))),)


def _simplify(chance: random.Random) -> Call:
    terms = [
        f"sqrt(sin(x*{n})+cos(y**{chance.randint(2, 9)}))/(tan(z*{n})+x**{n}*log(y+{chance.randint(2, 9)}))"
        for n in range(1, chance.randint(8, 14))
    ]
    return "sympy.simplify", ("+".join(terms),)


def _factorial(chance: random.Random) -> Call:
    number = chance.randint(10**8, 10**10)
    return chance.choice(
        [("sympy.evaluate", (f"factorial({number})/x",)), ("math_verify.verify_texts", ("$1$", f"${number}!$"))]
    )


def _tower(chance: random.Random) -> Call:
    height = chance.randint(4, 30)
    latex = "^{".join(_digits(chance) for _ in range(height)) + "}" * (height - 1)
    return "math_verify.verify_texts", ("$1$", f"${latex}$")


def _expansion(chance: random.Random) -> Call:
    return "sympy.expand", (f"(a+b*c+d^2+e*f)^{chance.randint(60, 400)}",)


def _brackets(chance: random.Random) -> Call:
    depth = chance.randint(201, 9_000)
    opening, closing = chance.choice(["()", ("sin(", ")"), ("-(", ")"), ("x+(", ")")])
    text = (opening * depth)[:9_000] + "x" + closing * depth
    return "sympy.parse", (text[:19_000],)


def _nested_latex(chance: random.Random) -> Call:
    depth = chance.randint(2_000, 50_000)
    part = chance.choice(["{", r"\frac{", r"\sqrt{", r"\left(", "$", r"\begin{x}"])
    return "pylatexenc.parse", ((part * depth)[:200_000],)


def _long_answer(chance: random.Random) -> Call:
    return "pylatexenc.text_to_latex", ("%" * chance.randint(40_000, 200_000),)


def _texts(chance: random.Random) -> Call:
    part = chance.choice(["answer is ", "1 ", "1+", r"\boxed{", "$x$ ", "= ", "1,234 ", "(1,", "final answer is 1 "])
    return "math_verify.parse", ((part * 200_000)[: chance.randint(1_000, 60_000)],)


def _noise(chance: random.Random) -> Call:
    text = "".join(chance.choice("x9()[]{}+-*/^=,.$\\ \x00é_'\"!<>") for _ in range(chance.randint(1, 4_000)))
    return chance.choice(["sympy.parse", "math_verify.parse", "pylatexenc.latex_to_text", "sympy.parse_latex"]), (text,)


def _code(chance: random.Random) -> Call:
    text = chance.choice(
        [
            "__import__('os')._exit(0)",
            "().__class__.__bases__[0].__subclasses__()",
            "x.__class__.__mro__",
            "(lambda f: f(f))(lambda f: f(f))",
            "[y for y in (1,)*10**9]",
            "f'{x.__class__}'",
            "eval('1')",
            "open('/etc/passwd').read()",
        ]
    )
    return chance.choice(["sympy.parse", "sympy.simplify", "sympy.to_latex"]), (text,)


def _pick(*calls: Call) -> Callable[[random.Random], Call]:
    return lambda chance: chance.choice(calls)


def _memory(chance: random.Random) -> Call:
    return chance.choice([("toy.grow", ()), ("toy.allocate", (chance.randint(2**28, 2**40),))])


CLASSES = {
    "huge power": Class(_power, STOPPED),
    "endless simplify": Class(_simplify, STOPPED | ANSWERED | RAISED),
    "factorial": Class(_factorial, STOPPED | RAISED | ANSWERED),
    "tower in LaTeX": Class(_tower, STOPPED | ANSWERED),
    "expansion": Class(_expansion, STOPPED | {"RESULT_TOO_LARGE"}),
    "no end, uninterruptible": Class(_pick(("toy.endless", ()), ("toy.swallow", ())), STOPPED),
    "memory": Class(_memory, {"MEMORY_LIMIT"}),
    "recursion": Class(_pick(("toy.recurse", ())), RAISED),
    "nested brackets": Class(_brackets, RAISED),
    "nested LaTeX": Class(_nested_latex, STOPPED | RAISED | ANSWERED | {"RESULT_TOO_LARGE", "WORKER_DIED"}),
    "answer too long": Class(_long_answer, {"RESULT_TOO_LARGE"}),
    "texts against expressions": Class(_texts, STOPPED | ANSWERED | {"RESULT_TOO_LARGE"}),
    "noise": Class(_noise, STOPPED | RAISED | ANSWERED | {"RESULT_TOO_LARGE"}),
    "code as text": Class(_code, RAISED),
    "crash": Class(_pick(("toy.crash", ()), ("toy.leave", ())), {"WORKER_DIED"}),
    "actions": Class(
        _pick(
            ("toy.fork", ()),
            ("toy.run_command", ()),
            ("toy.load_c", ()),
            ("toy.write_file", ("/tmp/python-bridge-was-here",)),
            ("toy.connect", (9,)),
            ("toy.system_exit", ()),
        ),
        RAISED,
    ),
}


async def hostile(stub: Any, name: str, call: Call, outcome: Outcome) -> None:
    """One call of a class, and the normal one after it."""
    session = await opened(stub)
    start = time.monotonic()
    try:
        await session.call(call[0], *call[1])
        reason = "an answer"
    except KitchenError as error:
        reason = error.reason
    outcome.seconds.append(time.monotonic() - start)
    outcome.reasons[reason] = outcome.reasons.get(reason, 0) + 1
    if reason not in CLASSES[name].ends:
        outcome.problems.append(f"{call[0]}({str(call[1])[:80]}) ended with {reason}")
    problem = await _normal(session)
    if problem:
        outcome.problems.append(f"the call after {call[0]}({str(call[1])[:80]}): {problem}")
    await session.close()


async def _normal(session: Session) -> str:
    """What is wrong with a call that is as any other; empty: nothing."""
    try:
        right = await session.call("math_verify.verify_texts", "$\\frac{1}{2}$", "the answer is 0.5")
        root = await session.call("sympy.parse", "x^2 + 1", mode=REFERENCE)
        text = await session.call("sympy.to_text", root)
    except KitchenError as error:
        return f"{error.reason}: {error.message[:200]}"
    return "" if (right, text) == (True, "x**2 + 1") else f"{right}, {text}"


async def soak(inputs: int, seed: int, at_once: int) -> int:
    """The exit status."""
    chance, outcomes = random.Random(seed), {name: Outcome() for name in CLASSES}
    names = [list(CLASSES)[number % len(CLASSES)] for number in range(inputs)]
    todo = [(name, CLASSES[name].make(chance)) for name in names]
    chance.shuffle(todo)
    start, me = time.monotonic(), psutil.Process()
    options: dict[str, Any] = {"workers": at_once, "memory_limit_bytes": MEMORY_BYTES, "cpu_seconds": CPU_SECONDS}
    options |= {"call_timeout_seconds": WALL_SECONDS, "max_result_bytes": RESULT_BYTES, "manifests": (str(TOY),)}
    libraries = ("math_verify", "pylatexenc", "sympy")
    with tempfile.TemporaryDirectory() as folder:
        files = me.num_fds()
        async with bridge(Path(folder), libraries=libraries, **options) as made:
            await opened(made.stub)
            places = asyncio.Semaphore(at_once)

            async def one(name: str, call: Call) -> None:
                async with places:
                    await hostile(made.stub, name, call, outcomes[name])

            await asyncio.gather(*(one(*each) for each in todo))
            left = len(made.adapter._template._workers) - len(made.adapter._sessions)
        children, left_files = me.children(recursive=True), me.num_fds() - files
    _print(outcomes, inputs, seed, time.monotonic() - start)
    problems = [f"{name}: {each}" for name, outcome in outcomes.items() for each in outcome.problems]
    if left > 0 or children or left_files > 0 or os.path.exists("/tmp/python-bridge-was-here"):
        problems.append(f"left behind: {left} workers, {len(children)} processes, {left_files} open files")
    for each in problems:
        print(each)
    print(f"{sum(len(each.seconds) for each in outcomes.values())} inputs, {len(problems)} problems")
    return int(bool(problems))


def _print(outcomes: dict[str, Outcome], inputs: int, seed: int, seconds: float) -> None:
    print(f"{inputs} hostile inputs, seed {seed}, {seconds:.0f} s; limits: {CPU_SECONDS} s of processor,")
    print(f"{WALL_SECONDS:g} s of wall clock, {MEMORY_BYTES >> 20} MiB, results of {RESULT_BYTES >> 10} KiB")
    print(f"{'class':28}{'inputs':>7}{'median s':>10}{'longest s':>10}  how they ended")
    for name, each in outcomes.items():
        if each.seconds:
            ends = ", ".join(f"{count} {reason}" for reason, count in sorted(each.reasons.items()))
            median = statistics.median(each.seconds)
            print(f"{name:28}{len(each.seconds):7}{median:10.2f}{max(each.seconds):10.2f}  {ends}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=2, help="calls that run at a time")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(soak(arguments.inputs, arguments.seed, arguments.at_once)))


if __name__ == "__main__":
    main()
