"""How a table of nets enters timm's registry."""

from __future__ import annotations

import sys
from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn

from pnnh.layers.fold import fold
from pnnh.layers.folded_block import fold_blocks


def default_cfg(side: int, **own: Any) -> dict[str, Any]:
    """What timm wants to know of a net for square images of `side` pixels; `own` are the entries that differ."""
    names = {"first_conv": "stem.0", "classifier": "head.fc", "license": "apache-2.0", "interpolation": "bicubic"}
    return {"url": "", "input_size": (3, side, side), "fixed_input_size": False} | names | own


def register(
    module: str, name: str, net: type[nn.Module], spec: dict[str, Any], sizes: str, features: dict[str, Any], **cfg: Any
) -> None:
    """Make `name` a function of `module` that builds `net(**spec)`, and an entry of timm's registry.

    Call it where the module's `default_cfgs` and `__all__` are complete. `sizes` says `spec` in words; `features` is
    timm's feature_cfg and `cfg` what else `build_model_with_cfg` takes. With inference_mode=True the net is folded
    before any weights are loaded: then it is fused weights that fit.
    """

    def build(pretrained: bool = False, inference_mode: bool = False, **kwargs: Any) -> nn.Module:
        make = (lambda **kwargs: folded(net(**kwargs))) if inference_mode else net
        own = dict(features)  # timm pops from it and writes to it
        return build_model_with_cfg(make, name, pretrained, feature_cfg=own, **cfg, **(spec | kwargs))

    build.__module__, build.__name__, build.__qualname__ = module, name, name
    build.__doc__ = f"{net.__name__} {sizes}; inference_mode=True is its fused form."
    setattr(sys.modules[module], name, build)
    register_model(build)  # adds the name to the module's __all__


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
