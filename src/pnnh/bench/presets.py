"""Who is measured against whom: the first of a group is the yardstick of the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import timm

import pnnh.models  # noqa: F401 - registers our names


@dataclass(frozen=True)
class Preset:
    """groups of timm names; batch_size: one that a laptop manages."""

    groups: tuple[tuple[str, ...], ...]
    batch_size: int


PRESETS = {
    "cifar": Preset(
        (("cifar_resnet56", "pnnh_resnet56", "plain_resnet56", "cifar_diracnet56", "cifar_repvgg56"),), batch_size=32
    ),
    "imagenet": Preset(  # no RepVGG: its 1,280 channels crash torch 2.15's convolution on a CPU, going backward
        (("resnet18", "pnnh_resnet18"), ("resnet34", "pnnh_resnet34"), ("resnet50", "pnnh_resnet50")), batch_size=4
    ),
    "vit": Preset(
        tuple(
            (f"vit_{size}_patch16_224", f"pnnh_vit_{size}_patch16_224", f"plain_vit_{size}_patch16_224")
            for size in ("tiny", "small")
        ),
        batch_size=4,
    ),
}


def known(groups: Iterable[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The groups with the names this installation has (a yardstick and one more at least), and the names it lacks."""
    groups = list(groups)
    missing = [name for group in groups for name in group if not timm.is_model(name)]
    kept = [tuple(name for name in group if name not in missing) for group in groups if group[0] not in missing]
    return [group for group in kept if len(group) > 1], missing
