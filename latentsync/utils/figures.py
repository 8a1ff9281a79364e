"""Figures of matplotlib as inline SVG; pages need no scripts or external files."""

import io
from html import escape

import matplotlib
from matplotlib.figure import Figure

# For `matplotlib.rc_context` around the drawing of a figure.
STYLE = {"svg.fonttype": "none", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}


def inline_svg(figure: Figure, label: str) -> str:
    """The figure as an element of a page, with a label for screen readers. The same figure gives the same text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    element = text.getvalue()[text.getvalue().index("<svg") :]
    return element.replace("<svg", f'<svg role="img" aria-label="{escape(label, quote=True)}"', 1)
