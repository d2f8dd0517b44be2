"""Folding in place, for timm's `inference_mode=True`."""

from __future__ import annotations

from torch import nn

from pnnh.layers.fold import fold
from pnnh.layers.folded_block import fold_blocks


def folded(net: nn.Module) -> nn.Module:
    """`net` in the form that `pnnh.fuse` makes, in place; in eval mode."""
    dtype = next(net.parameters()).dtype
    fold_blocks(net)
    _fold_parts(net)
    return net.to(dtype).eval()


def _fold_parts(module: nn.Module) -> None:
    for name, child in module.named_children():
        if hasattr(child, "reparameterize"):  # timm's blocks fold themselves
            child.reparameterize()
        elif (chain := fold(child)) is not None:
            setattr(module, name, chain)
        else:
            _fold_parts(child)
