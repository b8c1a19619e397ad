"""Text as an expression of SymPy, without running any of it: Python's own parser reads it, and this builds the objects.

`sympify` and `parse_expr` hand text to `eval`, so text never gets to them.
"""

from __future__ import annotations

import ast
import re
import sys
from itertools import groupby
from typing import Any

import sympy

_MAX_CHARACTERS = 20_000
_MAX_DEPTH = 100
# A sum of so many characters is a tree as deep as it has terms, which the parser counts by this limit of Python's.
_PARSER_RECURSION_LIMIT = max(_MAX_CHARACTERS, sys.getrecursionlimit())
_FUNCTIONS: dict[str, Any] = {
    name: getattr(sympy, name)
    for name in (
        "Abs Max Min acos acosh acot acsc asec asin asinh atan atan2 atanh binomial cbrt ceiling conjugate cos cosh "
        "cot coth csc csch erf exp factorial fibonacci floor gamma gcd im lcm log re root sec sech sign sin sinh sqrt "
        "tan tanh zeta"
    ).split()
} | {"abs": sympy.Abs, "ln": sympy.log}
_CONSTANTS = {
    "pi": sympy.pi,
    "E": sympy.E,
    "I": sympy.I,
    "oo": sympy.oo,
    "inf": sympy.oo,
    "nan": sympy.nan,
    "True": sympy.true,
    "False": sympy.false,
}
_RELATIONS = {ast.Eq: sympy.Eq, ast.NotEq: sympy.Ne, ast.Lt: sympy.Lt, ast.LtE: sympy.Le, ast.Gt: sympy.Gt}
_RELATIONS[ast.GtE] = sympy.Ge
_EQUALS = re.compile(r"(?<![=<>!])=(?!=)")
_NAME = re.compile(r"[^\W\d_][^\W_]*(_[^\W_]+)?")


class ExpressionError(ValueError):
    """Text that is no expression; the message says what of it."""


def parse(text: str) -> Any:
    """The expression of a text such as `2*x^2 + sin(pi*y)`: numbers, symbols, + - * / % ^ **, comparisons, = for an
    equation, tuples in brackets and the functions above. Every other name is a symbol.

    Raises:
        ExpressionError: it is something else.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ExpressionError(f"the text has {len(text)} characters, at most {_MAX_CHARACTERS} are read")
    sides = _EQUALS.split(text)
    if len(sides) == 2:
        return sympy.Eq(*map(_read, sides))
    return _read(text)


def _read(text: str) -> Any:
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(_PARSER_RECURSION_LIMIT)
        # Only reads: nothing of what it finds is run.
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval")
    # The parser says MemoryError when its own stack ends: a text of this length needs no memory to speak of.
    except (RecursionError, MemoryError) as error:
        raise ExpressionError("the text is nested too deep, or has too many terms: give it in parts") from error
    except (SyntaxError, ValueError) as error:
        raise ExpressionError(f"the text is no expression: {error}") from error
    finally:
        sys.setrecursionlimit(limit)
    return _build(tree.body, 0)


def expression(value: Any) -> Any:
    """An argument as an expression: text is parsed, numbers are taken as they are."""
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, bool):
        return sympy.true if value else sympy.false
    if isinstance(value, int):
        return sympy.Integer(value)
    return sympy.Float(value) if isinstance(value, float) else value


def _build(node: ast.expr, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ExpressionError(f"the expression is nested deeper than {_MAX_DEPTH}")

    def inner(each: ast.expr) -> Any:
        return _build(each, depth + 1)

    match node:
        case ast.Constant(value=bool(value)):
            return sympy.true if value else sympy.false
        case ast.Constant(value=int(value)):
            return sympy.Integer(value)
        case ast.Constant(value=float(value)):
            return sympy.Float(repr(value))
        case ast.Name(id=name):
            return _symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -inner(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return inner(operand)
        case ast.BinOp(left=left, op=operator, right=right):
            return _binary(operator, left, right, inner)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(inner, args))
        case ast.Compare(left=left, ops=[operator], comparators=[right]) if type(operator) in _RELATIONS:
            return _RELATIONS[type(operator)](inner(left), inner(right))
        case ast.Tuple(elts=elements):
            return sympy.Tuple(*map(inner, elements))
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            raise ExpressionError(f"there is no function {name[:64]!r}; there are {', '.join(sorted(_FUNCTIONS))}")
    raise ExpressionError(f"{type(node).__name__} is no part of an expression")


def _binary(operator: ast.operator, left: ast.expr, right: ast.expr, inner: Any) -> Any:
    # A long sum leans to the left; it is walked in a loop, so that its length is no depth.
    chain = [(operator, right)]
    while isinstance(left, ast.BinOp):
        chain.append((left.op, left.right))
        left = left.left
    result = inner(left)
    for summed, run in groupby(reversed(chain), lambda each: isinstance(each[0], ast.Add | ast.Sub)):
        values = [(each, inner(operand)) for each, operand in run]
        result = _sum(result, values) if summed else _product(result, values)
    return result


def _sum(result: Any, values: list[tuple[ast.operator, Any]]) -> Any:
    if all(isinstance(each, sympy.Expr) for each in (result, *(value for _, value in values))):
        # At once: one after the other takes time by the square of their number.
        return sympy.Add(result, *(value if isinstance(each, ast.Add) else -value for each, value in values))
    for each, value in values:
        result = result + value if isinstance(each, ast.Add) else result - value
    return result


def _product(result: Any, values: list[tuple[ast.operator, Any]]) -> Any:
    for each, value in values:
        match each:
            case ast.Mult():
                result = result * value
            case ast.Div():
                result = result / value
            case ast.Pow():
                result = result**value
            case ast.Mod():
                result = result % value
            case _:
                raise ExpressionError(f"the operator {type(each).__name__} is no part of an expression")
    return result


def _symbol(name: str) -> Any:
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if name in _FUNCTIONS:
        raise ExpressionError(f"{name} is a function: give its arguments in brackets")
    if len(name) > 64 or not _NAME.fullmatch(name):
        raise ExpressionError(f"{name[:64]!r} can't be a symbol's name: letters, digits, one _ inside")
    return sympy.Symbol(name)
