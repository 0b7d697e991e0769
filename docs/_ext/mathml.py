"""Render formulas as MathML when the site is built, so that pages need no script and no network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def to_mathml(latex: str, display: str = "inline") -> str:
    """Convert a formula, or raise ValueError if a command of it is unknown to the converter."""
    mathml = convert(latex, display=display)
    # Names of functions are identifiers: browsers put space around operators.
    mathml = re.sub(r"<mo>([A-Za-z]{2,})</mo>", r"<mi>\1</mi>", mathml)
    if "\\" in mathml or "merror" in mathml:
        raise ValueError(f"cannot convert the formula {latex!r}")
    return mathml


def visit_math(self: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(f'<span class="math notranslate">{to_mathml(node.astext())}</span>')
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    mathml = to_mathml(node.astext(), "block")
    # Themes lay out the class "math" for MathJax and its numbers of equations, so it is not used.
    style = "margin: 1rem 0; padding: 0.25rem 0; overflow-x: auto"
    self.body.append(f'<div class="notranslate" style="{style}">{mathml}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer; ``html_math_renderer = "mathml"`` selects it."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
