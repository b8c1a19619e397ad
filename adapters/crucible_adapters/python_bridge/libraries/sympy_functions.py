"""Functions of SymPy whose arguments may be texts."""

from __future__ import annotations

from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy

from crucible_adapters.python_bridge.libraries.expressions import expression, parse

__all__ = ["parse"]


def parse_latex(text: str) -> Any:
    """The expression of a formula in LaTeX; a grammar reads it, nothing is run."""
    return latex2sympy(text)


def to_text(value: Any) -> str:
    """As SymPy prints it in a line."""
    return str(value)


def to_latex(value: Any) -> str:
    """As a formula in LaTeX."""
    return sympy.latex(expression(value))


def simplify(value: Any) -> Any:
    """A simpler form of it."""
    return sympy.simplify(expression(value))


def expand(value: Any) -> Any:
    """Products and powers written out."""
    return sympy.expand(expression(value))


def factor(value: Any) -> Any:
    """A polynomial as a product."""
    return sympy.factor(expression(value))


def equal(left: Any, right: Any) -> bool:
    """Whether the difference simplifies to zero."""
    return bool(sympy.simplify(expression(left) - expression(right)) == 0)


def solve(equation: Any, symbol: str) -> list[Any]:
    """The solutions of an equation, or of an expression that is to be zero."""
    return list(sympy.solve(expression(equation), _symbol(symbol)))


def differentiate(value: Any, symbol: str, times: int = 1) -> Any:
    """The derivative."""
    return sympy.diff(expression(value), _symbol(symbol), times)


def integrate(value: Any, symbol: str, lower: Any = None, upper: Any = None) -> Any:
    """The integral, definite when both bounds are given."""
    variable = _symbol(symbol)
    if lower is None and upper is None:
        return sympy.integrate(expression(value), variable)
    return sympy.integrate(expression(value), (variable, expression(lower), expression(upper)))


def limit(value: Any, symbol: str, to: Any) -> Any:
    """The limit as the symbol goes there."""
    return sympy.limit(expression(value), _symbol(symbol), expression(to))


def substitute(value: Any, values: dict[str, Any]) -> Any:
    """Symbols by name replaced, all at once."""
    pairs = {sympy.Symbol(name): expression(each) for name, each in sorted(values.items())}
    return expression(value).subs(pairs, simultaneous=True)


def evaluate(value: Any, digits: int = 15) -> Any:
    """As a number of so many digits."""
    return sympy.N(expression(value), digits)


def number(value: Any) -> float:
    """A real number as a float. Raises TypeError for what is none."""
    return float(expression(value))


def free_symbols(value: Any) -> list[str]:
    """Names of its symbols, sorted."""
    return sorted(str(each) for each in expression(value).free_symbols)


def warm_up() -> None:
    """Fills what SymPy fills when it is first used."""
    simplify("(x**2 - 1)/(x - 1)")
    parse_latex(r"\frac{1}{2}")


def _symbol(name: str) -> Any:
    """The symbol of that name. One that no expression could have would be found in none of them, without a word."""
    if not name or any(each.isspace() for each in name):
        raise ValueError(f"{name!r} is no name of a symbol, such as x")
    return sympy.Symbol(name)
