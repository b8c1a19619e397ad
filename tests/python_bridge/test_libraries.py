"""What the libraries say through the bridge is what they say to whoever calls them directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import math_verify
import pylatexenc.latex2text
import pylatexenc.latexencode
import pytest
import sympy

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible_adapters.python_bridge.libraries import sympy_functions
from crucible_adapters.python_bridge.libraries.expressions import ExpressionError, parse
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError
from tests.contract.refusals import refused
from tests.contract.test_python_bridge import REFERENCE, Session, opened
from tests.python_bridge.conftest import bridge

BUILTIN = {"libraries": ("math_verify", "pylatexenc", "sympy"), "manifests": ()}
PAIRS = [
    (r"$\frac{1}{2}$", "The answer is 0.5", True),
    (r"$\frac{1}{2}$", "The answer is $0.51$", False),
    (r"$x^2 - 1$", r"so we get $\boxed{(x-1)(x+1)}$", True),
    (r"$\{1, 2\}$", r"$\boxed{\{2, 1\}}$", True),
    (r"$0 \le x < 1$", r"$[0, 1)$", True),
    (r"$\sqrt{8}$", r"it is $2\sqrt{2}$", True),
    ("1,234", "The final answer is 1234. I hope", True),
    ("42", "I don't know", False),
    ("$5$", "", False),
    (r"$\frac{1}{0}$", "3", False),
]
EXPRESSIONS = ["sin(x)**2 + cos(x)**2", "(x**2 - 1)/(x - 1)", "sqrt(8) + log(E**3)", "1/3 + 2*I", "Max(x, x)"]


async def test_math_verify(tmp_path: Path) -> None:
    async with bridge(tmp_path, **BUILTIN) as made:
        session = await opened(made.stub)
        for gold, answer, right in PAIRS:
            direct = math_verify.verify(math_verify.parse(gold), math_verify.parse(answer))
            assert direct is right, (gold, answer)  # the pairs are what they are meant to be
            assert await session.call("math_verify.verify_texts", gold, answer) is direct, (gold, answer)
            parsed = [await session.call("math_verify.parse", each, mode=REFERENCE) for each in (gold, answer)]
            assert await session.call("math_verify.verify", *parsed) is direct
        text = "x = 3 or $y = \\frac{2}{4}$"
        assert await session.call("math_verify.parse", text) == [str(each) for each in math_verify.parse(text)]
        letters = math_verify.parse("the answer is B", [math_verify.StringExtractionConfig()])
        assert await session.call("math_verify.parse", "the answer is B", extract=["string"]) == letters
        assert await session.call("math_verify.verify", "b", ["a", "b"]) is True
        with refused(FailedPreconditionError, "PYTHON_EXCEPTION", says="none of latex"):
            await session.call("math_verify.parse", "1", extract=["eval"])
        await sympy_is_right(session)
        await pylatexenc_is_right(session)


async def sympy_is_right(session: Session) -> None:
    x = sympy.Symbol("x")
    for text in EXPRESSIONS:
        direct = sympy.sympify(text)
        assert await session.call("sympy.parse", text) == str(direct)
        assert await session.call("sympy.simplify", text) == str(sympy.simplify(direct))
        assert await session.call("sympy.to_latex", text) == sympy.latex(direct)
    assert await session.call("sympy.expand", "(x + 1)^3") == str(sympy.expand((x + 1) ** 3))
    assert await session.call("sympy.factor", "x^2 - 1") == str(sympy.factor(x**2 - 1))
    assert await session.call("sympy.solve", "x^2 = 2", "x") == [str(each) for each in sympy.solve(x**2 - 2)]
    assert await session.call("sympy.differentiate", "sin(x)*x", "x", 2) == str(sympy.diff(sympy.sin(x) * x, x, 2))
    integral = sympy.integrate(sympy.exp(-x), (x, 0, sympy.oo))
    assert await session.call("sympy.integrate", "exp(-x)", "x", 0, "oo") == str(integral)
    assert await session.call("sympy.limit", "sin(x)/x", "x", 0) == "1"
    assert await session.call("sympy.substitute", "x + y", {"x": "y", "y": 2.5}) == str(sympy.Symbol("y") + 2.5)
    assert await session.call("sympy.evaluate", "pi", digits=30) == str(sympy.pi.evalf(30))
    assert await session.call("sympy.number", "1/4") == 0.25
    assert await session.call("sympy.equal", "(x+1)^2", "x^2 + 2*x + 1") is True
    assert await session.call("sympy.parse", "+".join(["x"] * 6000)) == "6000*x"
    assert await session.call("sympy.parse", "+".join(f"x{each}" for each in range(2500))) == str(
        sympy.Add(*sympy.symbols("x0:2500"))
    )
    assert await session.call("sympy.free_symbols", "b + a_1*a") == ["a", "a_1", "b"]
    assert await session.call("sympy.parse_latex", r"\frac{1}{2} + x") == "x + 1/2"
    assert await session.call("sympy.is_prime", 2**61 - 1) is True
    primes = [from_item(each) async for each in session.stream("sympy.primes", 1, 30)]
    assert primes == list(sympy.primerange(1, 30))

    root = await session.call("sympy.parse", "sqrt(x)/2 + 1/3", mode=REFERENCE)
    assert root.class_name == "sympy.core.add.Add"
    assert await session.call("sympy.to_text", root) == str(sympy.sqrt(x) / 2 + sympy.Rational(1, 3))
    both = await session.method(root, "as_numer_denom", mode=REFERENCE)
    assert await session.call("sympy.to_text", both) == "(3*sqrt(x) + 2, 6)"
    assert await session.attribute(root, "is_number") is False
    assert await session.attribute(root, "is_positive") is None
    with refused(InvalidArgumentError, "ARGUMENT_UNPARSEABLE", says="is a str, not object[sympy:Expr]"):
        await session.method(root, "equals", "__import__('os')")


def from_item(response: Any) -> int:
    return response.item.integer


async def pylatexenc_is_right(session: Session) -> None:
    latex = r"\textbf{Caf\'e}: $\alpha \leq \frac{1}{2}$ % no"
    direct = pylatexenc.latex2text.LatexNodes2Text().latex_to_text(latex)
    assert await session.call("pylatexenc.latex_to_text", latex) == direct
    direct = pylatexenc.latexencode.unicode_to_latex("é & α_1 50%")
    assert await session.call("pylatexenc.text_to_latex", "é & α_1 50%") == direct
    nodes = await session.call("pylatexenc.parse", r"a \emph{b} \begin{x}c\end{x}")
    assert [(each["kind"], each["name"]) for each in nodes][1] == ("LatexMacroNode", "emph")
    assert "".join(each["latex"] for each in nodes) == r"a \emph{b} \begin{x}c\end{x}"
    # A text can't have a file of the machine shown to it.
    assert "root" not in await session.call("pylatexenc.latex_to_text", r"\input{/etc/passwd}\include{/etc/passwd}")


async def test_the_builtin_manifests_are_listed(tmp_path: Path) -> None:
    async with bridge(tmp_path, libraries=("sympy", "math_verify"), manifests=()) as made:
        listed = (await made.stub.ListLibraries(pb.ListLibrariesRequest())).libraries
        assert [(each.name, each.version) for each in listed] == [
            ("math_verify", "0.9.0"),
            ("sympy", sympy.__version__),
        ]
        functions = {each.name: each for each in listed[1].functions}
        assert functions["differentiate"].signature == (
            "(value: text | integer | real | object[sympy:Basic], symbol: text, times: integer = 1)"
        )
        assert [name for name, each in functions.items() if each.streams] == ["primes"]
        assert all(each.description for library in listed for each in library.functions)


ATTACKS = [
    "__import__('os').system('true')",
    "().__class__.__bases__[0].__subclasses__()",
    "x.__class__",
    "(lambda: 1)()",
    "[x for x in (1, 2)]",
    "(x := 1)",
    "f'{x}'",
    "'a' + 'b'",
    "x if y else z",
    "sin(*x)",
    "sin(x, evaluate=y)",
    "(1).real",
    "sympify(x)",
    "eval(x)",
    "Symbol(x)",
    "x[0]",
    "{x: y}",
    "x @ y",
    "x // y",
    "x and y",
    "not x",
    "1 < x < 2",
    "1j",
    "...",
    "sin",
    "__builtins__",
    "_x",
    "x\nimport os",
    "x; y",
    "",
    "(" * 300 + "x" + ")" * 300,
    "-" * 15_000 + "x",
    "sin(" * 150 + "x" + ")" * 150,
    "\0",
    "x" * 65,
]


@pytest.mark.parametrize("text", ATTACKS, ids=range(len(ATTACKS)))
def test_text_that_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse(text)


def test_a_long_sum_is_an_expression() -> None:
    assert parse("x" + "+x*2-1" * 150) == 301 * sympy.Symbol("x") - 150
    assert parse("2^3^2 % 7 - -1") == sympy.Integer(2) ** 9 % 7 + 1
    assert parse("(x, 1/3)") == sympy.Tuple(sympy.Symbol("x"), sympy.Rational(1, 3))
    assert (parse("x >= 1"), parse("x == y")) == (sympy.Symbol("x") >= 1, sympy.Eq(*sympy.symbols("x y")))


@pytest.mark.parametrize("name", ["", "x y"])
def test_a_name_that_no_symbol_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a symbol"):
        sympy_functions.solve("x^2 - 1", name)
    assert sympy_functions.solve("x^2 - 1", "x") == [-1, 1]
