"""math_verify without its own alarms: the worker has limits. Memory that ends is told, which the library would hide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import math_verify

_KINDS = {
    "latex": math_verify.LatexExtractionConfig,
    "expression": math_verify.ExprExtractionConfig,
    "string": math_verify.StringExtractionConfig,
}
_KINDS_OF_ANSWERS = (
    (r"$\frac{1}{2}$", "the answer is 0.5"),
    (r"$\frac{3}{7}$", r"We get $\boxed{\frac{6}{14}}$"),
    ("1,234", "The final answer is 1234. I hope it is correct."),
    ("$25\\%$", "about 26%"),
    ("$(x+1)^2$", r"$\boxed{x^2 + 2x + 1}$"),
    ("$(x+2)^2$", "$x^2 + 3x + 4$"),
    (r"$\sqrt{8} + \pi$", r"$2\sqrt{2} + \pi$"),
    (r"$\{1, 2\}$", r"$\{2, 1\}$"),
    ("$(1, 2)$", r"$\left(1, 3\right)$"),
    (r"$[0, 1) \cup (2, \infty)$", r"$x \in [0, 1) \cup (2, \infty)$"),
    ("$x = 3$", "so $x = 3$"),
    (r"$1 \leq x < 2$", "$[1, 2)$"),
    (r"$\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$", r"$\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}$"),
    (r"$\sin(x)^2 + \cos(x)^2$", "1"),
    ("$2 + 3i$", "$3i + 2$"),
    ("5/8", "5/9"),
)
_DEFAULT = ("latex", "expression")


def parse(
    text: str,
    extract: Sequence[str] = _DEFAULT,
    fallback_mode: str = "first_match",
    extraction_mode: str = "any_match",
) -> list[Any]:
    """The answers in a text: expressions of SymPy, and as a last resort text; empty: none found."""
    unknown = sorted(set(extract) - set(_KINDS))
    if unknown:
        raise ValueError(f"extract: {unknown[0]!r} is none of {', '.join(_KINDS)}")
    if fallback_mode not in ("no_fallback", "first_match"):
        raise ValueError(f"fallback_mode: {fallback_mode!r} is none of no_fallback, first_match")
    if extraction_mode not in ("first_match", "any_match"):
        raise ValueError(f"extraction_mode: {extraction_mode!r} is none of first_match, any_match")
    arguments: Any = {"fallback_mode": fallback_mode, "extraction_mode": extraction_mode, "parsing_timeout": None}
    try:
        return math_verify.parse(text, [_KINDS[each]() for each in extract], raise_on_error=True, **arguments)
    except MemoryError:
        raise
    except Exception:
        return []  # as the library without raise_on_error


def verify(
    gold: Any,
    answer: Any,
    float_rounding: int = 6,
    numeric_precision: int = 15,
    strict: bool = True,
    allow_set_relation_comp: bool = False,
) -> bool:
    """Whether an answer is the right one; both as parse gives them."""
    arguments: Any = {
        "float_rounding": float_rounding,
        "numeric_precision": numeric_precision,
        "strict": strict,
        "allow_set_relation_comp": allow_set_relation_comp,
    }
    golds, answers = (each if isinstance(each, list) else [each] for each in (gold, answer))
    for one, other in product(golds, answers):
        try:
            if math_verify.verify(one, other, timeout_seconds=None, raise_on_error=True, **arguments):
                return True
        except MemoryError:
            raise
        except Exception:
            continue  # as the library without raise_on_error
    return False


def verify_texts(gold: str, answer: str, strict: bool = True) -> bool:
    """Whether the answer in a text is that of the other: parse and verify in one call."""
    return verify(parse(gold), parse(answer), strict=strict)


def warm_up() -> None:
    """Fills what the library and SymPy fill when they first meet a kind of answer: every session starts with it."""
    for gold, answer in _KINDS_OF_ANSWERS:
        verify_texts(gold, answer)
    parse("A", ("string",))
