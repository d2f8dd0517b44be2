"""The picture of dissipating inputs: one image read back along several nets, untrained and trained, as an SVG.

A *view* is what `pnnh.analysis.readback.read_back` returns; a *net* is (method, depth, test accuracy or None,
views), the views by state ("untrained", "trained").
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from pnnh.report.figure import draw
from pnnh.report.frontier import look

Net = tuple[str, int, float | None, Mapping[str, Mapping[str, Any]]]
WIDTH, LABEL, NOTE = 480, 14, 12  # of the drawing and its letters, so that it can be read on a screen of 420 px
TITLES = {"untrained": "Untrained", "trained": "Trained"}
_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" class="own" viewBox="0 0 {width} {height}" role="img"
 aria-label="{title}" style="max-width:44rem" font-family="system-ui, sans-serif"><style>
.ink {{ fill: #1d2733; }} .soft {{ fill: #5d6b7a; }} image {{ image-rendering: pixelated; }}
@media (prefers-color-scheme: dark) {{ .ink {{ fill: #e6ebf0; }} .soft {{ fill: #a9b4c0; }} }}
</style>"""


def picture(nets: Sequence[Net]) -> str:
    """An image and what is read back of it at the end of each part of every net; a row of tiles a net and state."""
    states = [state for state in TITLES if any(state in views for *_, views in nets)]
    parts, top = [], 6.0
    for state in states:
        parts.append(_text(TITLES[state], 0, top + LABEL + 2, LABEL + 2, bold=True))
        top += LABEL + 12
        for method, depth, accuracy, views in nets:
            if state in views:
                row, height = _row(look(method).label, depth, accuracy if state == "trained" else None, views[state])
                parts.append(f'<g transform="translate(0 {top:g})">{row}</g>')
                top += height
    title = escape("One image read back along nets: " + ", ".join(look(method).label for method, *_ in nets))
    return _HEAD.format(width=WIDTH, height=round(top), title=title) + "".join(parts) + "</svg>"


def _row(name: str, depth: int, accuracy: float | None, view: Mapping[str, Any]) -> tuple[str, float]:
    """The tiles of one net with its name above and R² below each; and the height they take."""
    tiles = pictures(view)
    side = WIDTH / len(tiles)
    label = f"{name}: " + words(view["r2"][-1]) + ("" if accuracy is None else f"; {100 * accuracy:.1f} % correct")
    parts = [_text(label, 0, LABEL, LABEL)]
    layers = _layers(depth, view)
    notes = ["input", *(f"layer {layer}" if layer == layers[0] else str(layer) for layer in layers)]
    for index, (tile, note) in enumerate(zip(tiles, notes, strict=True)):
        left = index * side
        box = f'x="{left + 1:g}" y="{LABEL + 6}" width="{side - 2:g}" height="{side - 2:g}"'
        parts.append(f'<image {box} href="{tile}"/>')
        parts.append(_text(note, left + side / 2, LABEL + side + 17, NOTE, "middle", "soft"))
        if index:
            parts.append(_text(f"{view['r2'][index - 1]:.2f}", left + side / 2, LABEL + side + 31, NOTE, "middle"))
    parts.append(_text("R²", side / 2, LABEL + side + 31, NOTE, "middle"))
    return "".join(parts), LABEL + side + 48


def _layers(depth: int, view: Mapping[str, Any]) -> list[int]:
    """The layer at the end of each part."""
    return [round(depth * part / len(view["at"])) for part in range(1, len(view["at"]) + 1)]


def _text(words: str, x: float, y: float, size: float, anchor: str = "start", ink: str = "ink", bold=False) -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
    return f'<text class="{ink}" {place}{weight}>{escape(words)}</text>'


def pictures(view: Mapping[str, Any]) -> list[str]:
    """The tiles of a view, the original first, as PNG data addresses."""
    from PIL import Image

    count, channels, height, width = view["shape"]
    pixels = np.frombuffer(base64.b64decode(view["pixels"]), np.uint8).reshape(count, channels, height, width)
    found = []
    for tile in pixels:
        file = io.BytesIO()
        image = tile.transpose(1, 2, 0) if channels == 3 else tile[0]
        Image.fromarray(np.ascontiguousarray(image)).save(file, format="PNG")
        found.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    return found


def words(r2: float) -> str:
    """How much of an image can be read back, in words. `r2`: the share of its variance that is."""
    steps = ((0.9, "nearly all of the image"), (0.6, "most of the image"), (0.4, "about half of the image"))
    steps += ((0.2, "a third of the image"), (0.05, "a trace of the image"))
    return next((text for least, text in steps if r2 >= least), "nothing of the image") + " is left"


def reading(nets: Sequence[Net]) -> list[str]:
    """One sentence on each net: how much is left at the end, from which layer on less than half."""
    lines = []
    for method, depth, accuracy, views in nets:
        parts = []
        for state, view in views.items():
            below = [layer for layer, r2 in zip(_layers(depth, view), view["r2"], strict=True) if r2 < 0.5]
            place = f", less than half from layer {below[0]} on" if below else ""
            parts.append(f"{state}, {words(view['r2'][-1])} at the end (R² {view['r2'][-1]:.2f}){place}")
        score = "" if accuracy is None else f". It gets {100 * accuracy:.1f} % of the test images right"
        lines.append(f"{look(method).label}: {'; '.join(parts)}{score}.")
    return lines


def losses(nets: Sequence[Net]) -> list[str]:
    """Two figures a state, lines of every net by depth: R² of the image read back, and the share of positive units."""
    svgs = []
    for state in [state for state in TITLES if any(state in views for *_, views in nets)]:
        for title, values in ((f"{TITLES[state]}: the image read back, R²", _r2), ("positive responses", _survival)):
            with draw(width=4.6, height=2.9) as figure:
                for method, depth, _, views in nets:
                    if state in views:
                        share, value = values(views[state])
                        style = look(method).style() | {"label": look(method).label}
                        figure.axes.plot(depth * np.array(share), value, **style)
                name = title if ":" in title else f"{TITLES[state]}: share of {title}"
                figure.axes.set(title=name, xlabel="layer", ylim=(-0.03, 1.03))
                figure.axes.legend(fontsize=8.5)
            svgs.append(figure.svg)
    return svgs


def _r2(view: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return [part / len(view["at"]) for part in range(len(view["at"]) + 1)], [1.0, *view["r2"]]


def _survival(view: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Means over equal parts of the net: single activations jump between a layer's two tensors."""
    parts = np.array_split(np.array(view["survival"]), min(12, len(view["survival"])))
    return [(index + 0.5) / len(parts) for index in range(len(parts))], [float(part.mean()) for part in parts]
