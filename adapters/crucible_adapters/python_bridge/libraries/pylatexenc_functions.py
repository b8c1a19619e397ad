"""pylatexenc: between LaTeX and text, and the structure of LaTeX. Files that a text names are not read."""

from __future__ import annotations

from typing import Any

from pylatexenc.latex2text import LatexNodes2Text
from pylatexenc.latexencode import unicode_to_latex
from pylatexenc.latexwalker import LatexWalker


def latex_to_text(latex: str, math_mode: str = "text", keep_comments: bool = False) -> str:
    """LaTeX as plain text."""
    return LatexNodes2Text(math_mode=math_mode, keep_comments=keep_comments).latex_to_text(latex)


def text_to_latex(text: str) -> str:
    """Text with its special characters as LaTeX."""
    return unicode_to_latex(text)


def parse(latex: str) -> list[dict[str, Any]]:
    """The nodes at the top: kind, name of the macro or environment, place and length in the text, the LaTeX itself."""
    nodes, _, _ = LatexWalker(latex, tolerant_parsing=False).get_latex_nodes()
    return [
        {
            "kind": type(node).__name__,
            "name": getattr(node, "macroname", getattr(node, "environmentname", "")),
            "position": node.pos,
            "length": node.len,
            "latex": node.latex_verbatim(),
        }
        for node in nodes
    ]


def warm_up() -> None:
    """Builds its tables."""
    latex_to_text(r"\'e $\alpha$")
    text_to_latex("é")
    parse(r"\emph{x}")
