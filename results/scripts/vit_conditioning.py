"""Rank, gradient and what is left of the input by depth: residual, plain, PNNH and Cutting-the-Skip ViTs side by side.

    python results/scripts/vit_conditioning.py                                        # at initialisation
    python results/scripts/vit_conditioning.py --trained 'runs/vit/models/*-12-0-*'   # trained nets of `pnnh compare`
    python results/scripts/vit_conditioning.py --draw                                 # the figure again

Every call adds its nets to results/vit-conditioning.json (a net measured again replaces its rows) and draws
docs/figures/vit-conditioning.svg. By `pnnh.diagnose`, at the activations: effective rank, CKA, R^2 of a linear decoder,
gradient. Here, from the calls of scaled_dot_product_attention: the effective rank of the attention matrices, and the
share of a token that is not the mean token (0 when the tokens have collapsed into one), in the values they mix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pnnh import diagnose, provenance
from pnnh.cli._model import load_model
from pnnh.recipes import TransformerComparison, transformer_recipe
from pnnh.recipes.comparison import Cell
from pnnh.report import json_text, write_text
from pnnh.report.figure import COLOURS, draw
from pnnh.train import Normalise, load_data

ROOT = Path(__file__).resolve().parents[2]
RECORD, FIGURE = Path("results/vit-conditioning.json"), ROOT / "docs" / "figures" / "vit-conditioning.svg"
COLOUR = {"residual": COLOURS[0], "plain": COLOURS[4], "pnnh": COLOURS[2], "skip_init": COLOURS[1]}
LABEL = {"residual": "residual", "plain": "plain", "pnnh": "PNNH", "skip_init": "Cutting the Skip"}
DRAWN = {
    "attention_rank": "effective rank of attention",
    "own_share": "share of a token that is its own",
    "r2": "R² of the input",
    "gradient": "gradient at the features",
}
KEPT = ("effective_rank", "cka", "cka_high", "r2", "r2_high", "gradient", "survival", "cosine")


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            query, key, value = args
            self.rows.append(look(query, key, value, (kwargs or {}).get("attn_mask")))
        return result


@torch.no_grad()
def look(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> dict[str, float]:
    """One call, [B, H, T, K] each: means over images and heads."""
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    attention = (logits if mask is None else logits + mask).softmax(-1)
    singular = torch.linalg.svdvals(attention.double())
    rank = torch.special.entr(singular / singular.sum(-1, keepdim=True)).sum(-1).exp()
    tokens = value.transpose(1, 2).flatten(2)
    own = (tokens - tokens.mean(1, keepdim=True)).square().sum() / tokens.square().sum()
    return {"attention_rank": rank.mean().item(), "own_share": own.item()}


@contextmanager
def watch() -> Iterator[list[dict[str, float]]]:
    with _Watch() as watching:
        yield watching.rows


def measure(net: nn.Module, images: Tensor) -> list[dict[str, float]]:
    """One row per block, first to last."""
    net.eval()
    with torch.no_grad(), watch() as attention:
        net(images[:64])
    found = diagnose(net, images, training=False, draws=4, pictures=0).rows()
    if len(found) != len(attention):
        raise SystemExit(f"{len(found)} activations, {len(attention)} attentions: not one of each per block")
    layers = [{name: row[name] for name in KEPT} for row in found]
    return [{"block": i + 1} | a | b for i, (a, b) in enumerate(zip(attention, layers, strict=True))]


def figure(nets: list[dict]) -> str:
    """Left to right the four measures, a row for every state (at the start, trained) and depth."""
    kinds = sorted({(net["state"], net["depth"]) for net in nets}, key=lambda kind: (kind[0] != "start", kind[1]))
    with draw(len(DRAWN), len(kinds), width=13, height=2.7 * len(kinds), squeeze=False) as drawn:
        for line, (state, depth) in zip(drawn.axes, kinds, strict=True):
            for axes, (name, title) in zip(line, DRAWN.items(), strict=True):
                for net in nets:
                    if (net["state"], net["depth"]) == (state, depth):
                        values = [row[name] for row in net["blocks"]]
                        axes.plot(range(1, depth + 1), values, color=COLOUR[net["method"]], label=LABEL[net["method"]])
                axes.set(title=f"{title}\n{depth} blocks, {'at the start' if state == 'start' else state}")
                if name == "gradient":
                    axes.set_yscale("log")
        drawn.axes[0][0].legend()
    return drawn.svg


def main(
    trained: str | None = None,
    depths: tuple[int, ...] = (12, 48),
    num: int = 256,
    image_size: int = 16,
    seed: int = 0,
    draw: bool = False,
) -> None:
    old = json.loads(RECORD.read_text())["nets"] if RECORD.is_file() else []
    kept = {(net["state"], net["method"], net["depth"], net["seed"]): net for net in old}
    if not draw:
        data = load_data("cifar10", image_size=image_size)
        images = Normalise(data, "cpu")(data.test.images[:num])
        for state, method, depth, number, net in found(trained, depths, data, seed):
            blocks = measure(net, images)
            kept[state, method, depth, number] = {
                "state": state, "method": method, "depth": depth, "seed": number, "blocks": blocks
            }  # fmt: skip
            print(state, method, depth, {name: f"{blocks[-1][name]:.3g}" for name in DRAWN}, flush=True)
            settings = {"data": data.to_dict(), "num_images": num}
            write_text(RECORD, json_text(settings | {"nets": list(kept.values())} | provenance.environment("cpu")))
    write_text(FIGURE, figure([net for net in kept.values() if net["seed"] == seed]))


def found(trained: str | None, depths: tuple[int, ...], data, seed: int) -> Iterator[tuple]:
    """(state, method, depth, seed, net) of the nets in the folders `trained`, or new ones."""
    if trained is not None:
        folders = sorted(glob(trained))
        if not folders:
            raise SystemExit(f"no folder matches {trained!r}")
        for folder in folders:
            method, depth, number, _ = Path(folder).name.rsplit("-", 3)
            yield "trained", method, int(depth), int(number), load_model(folder)[0]
        return
    for depth in depths:
        plan = TransformerComparison("cifar10", transformer_recipe(data), depths=(depth,), image_size=data.image_size)
        for method in plan.methods:
            torch.manual_seed(seed)
            yield "start", method, depth, seed, plan.build(Cell(method, depth, seed), data)[0]


if __name__ == "__main__":
    tyro.cli(main)
