"""What each ingredient of the plain Transformer is worth: the net with one of them taken out, on CIFAR-10.

    python results/scripts/vit_ablation.py                               # all variants, then the record
    python results/scripts/vit_ablation.py --only "no diagonal bias"     # one of them, into its part file
    python results/scripts/vit_ablation.py --collect                     # the record from the part files

Finished variants are kept in runs/vit-ablation and not trained again. The record is results/vit-ablation.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import tyro

from pnnh import provenance
from pnnh.layers import FrozenDirac, FrozenOrthogonal, LearnedCoder, PerLayerCoder
from pnnh.layers.block import BlockOptions
from pnnh.models import PnnhVit
from pnnh.recipes import TransformerComparison, transformer_recipe
from pnnh.report import json_text, write_text
from pnnh.train import Dataset, load_data, train

PARTS = Path("runs/vit-ablation")
RECORD = Path("results/vit-ablation.json")


def no_bias(depth: int, tokens: int) -> BlockOptions:
    """A diagonal that starts at 0: attention starts as the mean of all tokens (the bias stays a parameter)."""
    return BlockOptions(mixing=depth * math.log(tokens))


def with_coder(choice) -> Callable[[int, int], BlockOptions]:
    return lambda depth, tokens: BlockOptions(coder=choice)


def as_it_is(depth: int, tokens: int) -> BlockOptions:
    return BlockOptions()


@torch.no_grad()
def unrelated_output(net: PnnhVit) -> None:
    """O orthogonal, but not V's inverse."""
    for coder in net.coders:
        torch.nn.init.orthogonal_(coder.output)


@torch.no_grad()
def no_pair(net: PnnhVit) -> None:
    """E and D start as random matrices of the pair code's size (Frobenius norm)."""
    for coder in net.coders:
        for kernel in (coder.encode, coder.decode):
            kernel.normal_(0.0, (kernel.square().mean() ** 0.5).item())


VARIANTS: dict[str, tuple[Callable[[int, int], BlockOptions], Callable[[PnnhVit], None] | None]] = {
    "all ingredients": (as_it_is, None),
    "no diagonal bias": (no_bias, None),
    "output not the inverse of value": (as_it_is, unrelated_output),
    "no pair code": (as_it_is, no_pair),
    "coder frozen, V orthogonal": (with_coder(FrozenOrthogonal()), None),
    "coder frozen, V = I": (with_coder(FrozenDirac()), None),
    "coder at the full learning rate": (with_coder(LearnedCoder(lr_scale=1.0)), None),
    "a coder for every block": (with_coder(PerLayerCoder()), None),
}


def build(variant: str, plan: TransformerComparison, data: Dataset) -> PnnhVit:
    """The net of the comparison `plan`, changed."""
    (depth,), tokens = plan.depths, (data.image_size // plan.patch) ** 2
    options, change = VARIANTS[variant]
    net = PnnhVit(**plan.sizes(depth, data), options=options(depth, tokens))
    if change is not None:
        change(net)
    return net


def main(
    only: str | None = None,
    collect: bool = False,
    limit: int = 5000,
    epochs: int = 10,
    depth: int = 12,
    width: int = 96,
    image_size: int = 16,
    patch: int = 4,
    seed: int = 0,
) -> None:
    settings = {"limit": limit, "epochs": epochs, "depth": depth, "width": width, "image_size": image_size}
    settings |= {"patch": patch, "seed": seed}
    if only is not None and only not in VARIANTS:
        raise SystemExit(f"unknown variant {only!r}; choose from {', '.join(VARIANTS)}")
    data = load_data("cifar10", image_size=image_size, limit=limit)
    recipe = transformer_recipe(data, epochs=epochs)
    plan = TransformerComparison("cifar10", recipe, depths=(depth,), width=width, patch=patch, image_size=image_size)
    rows = []
    for variant in VARIANTS if only is None else [only]:
        part = PARTS / f"{variant.replace(' ', '-').replace(',', '')}-{seed}.json"
        found = json.loads(part.read_text()) if part.is_file() else None
        if found and found["settings"] == settings:
            rows.append(found["row"])
            continue
        if collect:
            continue
        torch.manual_seed(seed)
        net = build(variant, plan, data)
        row = {"variant": variant, "parameters": sum(p.numel() for p in net.parameters())}
        events = []
        for event in train(net, data, recipe, seed=seed, device="cpu"):
            events.append(asdict(event))
            print(variant, event, flush=True)
        row |= {"test_%": round(100 * events[-1]["test_accuracy"], 2), "curve": events}
        write_text(part, json_text({"settings": settings, "row": row}))
        rows.append(row)
    if only is None:
        result = {"settings": settings | {"recipe": recipe.to_dict()}, "data": data.to_dict(), "rows": rows}
        write_text(RECORD, json_text(result | provenance.environment("cpu")))
        for row in rows:
            print(f"{row['test_%']:6.2f} %  {row['parameters']:>9,}  {row['variant']}")


if __name__ == "__main__":
    tyro.cli(main)
