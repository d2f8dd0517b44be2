"""The figures and the page of a diagnosis. A *net* is (name, rows), a row a layer; `measure_std` draws a band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pnnh.report.figure import COLOURS, draw
from pnnh.report.page import Page, Section
from pnnh.report.table import Row

Net = tuple[str, Sequence[Row]]
WIDTH = 8.8  # inches, of every figure, so that their letters are of one size on a page
COLUMNS = ("depth", "layer", "op", "survival", "bound", "dead", "r2", "r2_high", "cka", "cka_high", "ssim", "cosine")
COLUMNS += ("effective_rank", "growth", "theory", "agrees", "caveat")


def _column(rows: Sequence[Row], key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=float)


def _lines(axes, nets: Sequence[Net], measure: str, floor: bool) -> None:
    for (name, rows), colour in zip(nets, COLOURS * len(nets), strict=False):
        depth, value, std = (_column(rows, key) for key in ("depth", measure, f"{measure}_std"))
        axes.plot(depth, value, color=colour, label=name, marker="o" if len(depth) < 30 else None, markersize=3)
        axes.fill_between(depth, value - std, value + std, color=colour, alpha=0.2, linewidth=0)
        if floor:
            middle, high = _column(rows, f"{measure}_floor"), _column(rows, f"{measure}_high")
            axes.fill_between(depth, 2 * middle - high, high, color="#8a97a5", alpha=0.35, linewidth=0)
    if floor:
        axes.fill_between([], [], color="#8a97a5", alpha=0.35, label="noise floor")
    axes.set_xlabel("activation, in order of execution")


def information(nets: Sequence[Net]) -> str:
    """How much of the input is left: R^2 of the linear readout and CKA against depth, over the noise floor."""
    with draw(2, height=3.3, width=WIDTH) as figure:
        for axes, measure, title in zip(
            figure.axes, ("r2", "cka"), ("Input read back, R²", "Similarity to the input, CKA"), strict=True
        ):
            _lines(axes, nets, measure, floor=True)
            axes.set_title(title)
            low = min(np.nanmin(_column(rows, measure)) for _, rows in nets)
            axes.set_ylim(max(-0.35, min(-0.05, low - 0.02)), 1.02)
        figure.axes[0].legend()
    return figure.svg


def survival(nets: Sequence[Net]) -> str:
    """Surviving neurons: measured, by theory (dots, where a row of it applies) and the Cantelli bound (dashed)."""
    with draw(len(nets), width=WIDTH, height=2.9, sharey=True, squeeze=False) as figure:
        for axes, (name, rows), colour in zip(figure.axes[0], nets, COLOURS * len(nets), strict=False):
            depth = _column(rows, "depth")
            axes.plot(depth, _column(rows, "survival"), color=colour, label="measured")
            axes.plot(depth, _column(rows, "theory_survival"), ".", color="#1d2733", markersize=3.5, label="theory")
            axes.fill_between(
                depth, 0, _column(rows, "bound"), color=colour, alpha=0.15, linewidth=0, label="below the bound"
            )
            axes.set(title=name, ylim=(0, 1.02), xlabel="activation, in order of execution")
        figure.axes[0][0].set_ylabel("share of positive responses")
        figure.axes[0][0].legend(loc="lower left", fontsize=8)
    return figure.svg


def gradient(nets: Sequence[Net]) -> str:
    """Norm of the gradient at each layer relative to the last one; dotted: by theory, where it holds of every layer."""
    with draw(width=WIDTH, height=3.1) as figure:
        for (name, rows), colour in zip(nets, COLOURS * len(nets), strict=False):
            norm = _column(rows, "gradient")
            norm = np.where(norm > 0, norm, np.nan)
            known = norm[np.isfinite(norm)]
            if len(known):
                figure.axes.semilogy(_column(rows, "depth"), norm / known[-1], color=colour, label=name)
            expected = np.cumprod(_column(rows, "theory_growth")[:0:-1])[::-1]
            if np.isfinite(expected).all() and not any(row["caveat"] for row in rows):
                figure.axes.semilogy(_column(rows, "depth"), [*expected, 1], ":", color="#1d2733", linewidth=1)
        figure.axes.set(title="Gradient, relative to the last layer's", xlabel="activation, in order of execution")
        figure.axes.legend()
    return figure.svg


def correlations(nets: Sequence[Net], maps: Sequence[Any]) -> str:
    """Correlation of two images' features against that of the images; a line a layer, from early (light) to late."""
    from matplotlib import colormaps

    with draw(len(nets), width=WIDTH, height=3.2, squeeze=False) as figure:
        for axes, (name, _), table in zip(figure.axes[0], nets, maps, strict=True):
            table = np.asarray(table, dtype=float)
            place = np.linspace(-1, 1, table.shape[1], endpoint=False) + 1 / table.shape[1]
            for index in np.unique(np.linspace(0, len(table) - 1, 12).astype(int)):
                shade = colormaps["viridis_r"](index / max(1, len(table) - 1))
                seen = np.isfinite(table[index])
                axes.plot(place[seen], table[index][seen], color=shade, linewidth=1.3)
            axes.plot([-1, 1], [-1, 1], color="#8a97a5", linewidth=0.8, linestyle=":")
            low = np.floor(4 * min(np.nanmin(table), place[np.isfinite(table).any(0)].min())) / 4
            axes.set(title=name, xlabel="correlation of two images", xlim=(low, 1), ylim=(low, 1.03))
        figure.axes[0][0].set_ylabel("of their features")
    return figure.svg


def read_back(originals, nets: Sequence[Net], pictures: Sequence[Any], steps: int = 9) -> str:
    """Pictures [P, C, V, V] beside what layers of each net still tell of them ([layers, P, C, V, V] a net)."""
    originals = np.asarray(originals, dtype=float)
    if originals.shape[-1] < 4:
        return ""
    shown = min(len(originals), 6 if len(nets) == 1 else 3)
    low, high = np.nanmin(originals), np.nanmax(originals)
    with draw(
        steps + 1, shown * len(nets), width=WIDTH, height=0.92 * shown * len(nets) + 0.3, squeeze=False
    ) as figure:
        for axes in figure.axes.flat:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.grid(False)
        for part, ((name, rows), table) in enumerate(zip(nets, pictures, strict=True)):
            picked = np.unique(np.linspace(0, len(rows) - 1, steps).round().astype(int))
            for row in range(shown):
                line = figure.axes[part * shown + row]
                columns = [originals[row], *(np.asarray(table[index][row], dtype=float) for index in picked)]
                for axes, picture in zip(line, columns, strict=False):
                    picture = np.clip((picture.transpose(1, 2, 0) - low) / (high - low), 0, 1)
                    picture = picture if picture.shape[2] == 3 else picture[:, :, 0]
                    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                if row == 0:
                    titles = ["input", *(str(rows[index]["depth"]) for index in picked)]
                    for axes, title in zip(line, titles, strict=False):
                        axes.set_title(title, fontsize=8.5, fontweight="normal")
            figure.axes[part * shown + shown // 2, 0].set_ylabel(name, fontsize=9.5, fontweight="bold")
    return figure.svg


def below(rows: Sequence[Row], share: float) -> int | None:
    """The depth from which on no layer's R² reaches `share`; None if the last one does."""
    found = None
    for row in reversed(rows):
        if row["r2"] >= share:
            break
        found = row["depth"]
    return found


def reading(net: Net, dissipation_depth: int | None, gradient_growth: float) -> str:
    """One sentence on one net."""
    name, rows = net
    half, most = below(rows, 0.5), below(rows, 0.05)
    if half is None:
        left = f"more than half of the picture can be read back after all {len(rows)} activations"
    else:
        left = f"less than half of the picture can be read back from activation {half} of {len(rows)} on"
        left += f", less than a twentieth from {most}" if most is not None else ""
    left += "" if dissipation_depth is None else f", nothing but noise from {dissipation_depth}"
    alive = np.nanmean(_column(rows, "survival"))
    sentence = f"{name}: {left} (R² {rows[-1]['r2']:.2f} at the end); {alive:.0%} of the responses are positive"
    return sentence + (
        f"; the gradient grows {gradient_growth:.3g}-fold on its way back." if gradient_growth > 0 else "."
    )


def summary(net: Net, dissipation_depth: int | None, gradient_growth: float) -> Row:
    """One net in one row."""
    name, rows = net
    depths = {"half gone from": below(rows, 0.5), "95 % gone from": below(rows, 0.05), "noise from": dissipation_depth}
    return {
        "model": name,
        "activations": len(rows),
        **{key: "never" if depth is None else depth for key, depth in depths.items()},
        "R² at the end": round(rows[-1]["r2"], 2),
        "positive": f"{np.nanmean(_column(rows, 'survival')):.0%}",
        "gradient, first over last": gradient_growth,
    }


def dissipation_page(diagnoses: Sequence[Any], evidence: Sequence[str]) -> Page:
    """`diagnoses`: objects with model, rows(), originals, pictures, correlation, dissipation_depth, gradient_growth."""
    nets = [(diagnosis.model, diagnosis.rows()) for diagnosis in diagnoses]
    found = [(net, d.dissipation_depth, d.gradient_growth) for net, d in zip(nets, diagnoses, strict=True)]
    short = Section("In short", reading=[reading(*each) for each in found], rows=[summary(*each) for each in found])
    layers = [
        Section(
            f"All {len(rows)} layers of {name}", rows=[{key: row[key] for key in COLUMNS} for row in rows], folded=True
        )
        for name, rows in nets
    ]
    title = "Seeing inputs dissipate: " + ", ".join(name for name, _ in nets)
    lead = "What is left of the input after each activation, beside what noise would leave and what theory expects."
    return Page(title, lead, [short, *_figures(nets, diagnoses), *layers], evidence)


def _figures(nets: Sequence[Net], diagnoses: Sequence[Any]) -> list[Section]:
    pictures = read_back(diagnoses[0].originals, nets, [diagnosis.pictures for diagnosis in diagnoses])
    back = "The best linear decoder from a layer's features, fitted on other images; the numbers count activations. "
    back += "A grey average means that nothing is left."
    return [
        Section(
            "What each layer can still tell of the picture",
            svgs=[pictures] if pictures else [],
            caption=back if pictures else "The inputs are no pictures.",
        ),
        Section(
            "How much of the input is left",
            svgs=[information(nets)],
            caption="1 is all, 0 is nothing. Grey: the layer and unrelated images, mean and two standard deviations. "
            "What lies in the grey is noise. Left: what a linear decoder reads back. Right: whether images that are "
            "alike still have features that are alike, which a layer can keep when nothing can be read.",
        ),
        Section(
            "Surviving neurons",
            svgs=[survival(nets)],
            caption="Shaded: shares that the Chebyshev-Cantelli bound rules out. Dots: the matching row of the theory.",
        ),
        Section(
            "Will it train?",
            svgs=[gradient(nets)],
            caption="The norm of the gradient on its way back from the output. Level: all layers learn at one pace. "
            "A steep slope: the first layers get steps that are far too big, or none. Dotted: the theory of a chain.",
        ),
        Section(
            "Do different images stay different?",
            svgs=[correlations(nets, [diagnosis.correlation for diagnosis in diagnoses])],
            caption="Light lines are early layers, dark ones late. Above the dotted diagonal images become more alike; "
            "a level line at the top means that all images look the same to the layer.",
        ),
    ]
