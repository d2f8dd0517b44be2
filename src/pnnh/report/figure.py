"""Figures as inline SVG text: matplotlib draws, nothing is written to disk, no global setting of it is changed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

COLOURS = ("#3366cc", "#dc7633", "#2e8b57", "#8e44ad", "#c0392b", "#7f8c8d", "#b7950b", "#16a085")
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "text.parse_math": False,  # a name may hold dollars
    "svg.fonttype": "path",
    "svg.hashsalt": "pnnh",
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


class Figure:
    """The result of `draw`: `.axes` to draw on and, once the block ends, `.svg`."""

    def __init__(self, axes):
        self.axes = axes
        self.svg = ""


@contextmanager
def draw(columns: int = 1, rows: int = 1, *, width: float = 7.2, height: float = 3.4, **subplots) -> Iterator[Figure]:
    """Draw a grid of `rows` x `columns` axes (inches: `width` x `height` over all) without a display.

    `figure.axes` is one Axes for a 1 x 1 grid, else matplotlib's array of them. `**subplots` goes to `Figure.subplots`.
    The background is transparent, so that a page can have its own.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(canvas)
        figure = Figure(canvas.subplots(rows, columns, **subplots))
        yield figure
        text = io.StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": "pnnh"})
        figure.svg = text.getvalue()[text.getvalue().index("<svg") :]
