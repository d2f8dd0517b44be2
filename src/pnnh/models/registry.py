"""Our names in timm's registry: importing this module makes `timm.create_model("pnnh_resnet56")` work."""

from __future__ import annotations

from collections.abc import Callable

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from pnnh.layers.fold import fold
from pnnh.models.cifar import CifarNet, CifarResNet, PlainResNet, PnnhResNet
from pnnh.models.rivals import DiracNet, IsoNet, RepVgg, TatNet

DEPTHS = (20, 32, 44, 56, 110)
TINY = {"depth": 8, "widths": (4, 8, 16)}
FAMILIES: dict[str, type[CifarNet]] = {
    "pnnh_resnet": PnnhResNet,
    "plain_resnet": PlainResNet,
    "cifar_resnet": CifarResNet,
    "cifar_diracnet": DiracNet,
    "cifar_repvgg": RepVgg,
    "cifar_isonet": IsoNet,
    "cifar_tatnet": TatNet,
}
NETS = {f"{family}{size}": net for family, net in FAMILIES.items() for size in (*DEPTHS, "_tiny")}
SPECS: dict[str, dict] = {f"{family}{depth}": {"depth": depth} for family in FAMILIES for depth in DEPTHS}
SPECS |= {f"{family}_tiny": TINY for family in FAMILIES}


def _cfg() -> dict:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "min_input_size": (3, 8, 8),
        "fixed_input_size": False,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "first_conv": "stem.0",
        "classifier": "head.fc",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({name: _cfg() for name in SPECS})


def family_of(name: str) -> type[CifarNet]:
    """The net class behind a registered name."""
    return NETS[name]


def folded(module: nn.Module) -> nn.Module:
    """Fold the stages and conv-norm chains inside `module`, in place: the form that `pnnh.fuse` makes."""
    for name, child in module.named_children():
        if hasattr(child, "reparameterize"):  # timm's blocks fold themselves
            child.reparameterize()
            continue
        chain = fold(child)
        setattr(module, name, folded(child) if chain is None else chain.to(next(child.parameters()).dtype))
    return module


def in_form(net: type[nn.Module], inference_mode: bool) -> Callable[..., nn.Module]:
    """What builds `net`; folded where asked, before any weights are loaded: then it is fused weights that fit."""
    return (lambda **kwargs: folded(net(**kwargs)).eval()) if inference_mode else net


def _register(name: str) -> None:
    def build(pretrained: bool = False, inference_mode: bool = False, **kwargs) -> CifarNet:
        feature_cfg = {"out_indices": (0, 1, 2), "flatten_sequential": True}
        make = in_form(family_of(name), inference_mode)
        return build_model_with_cfg(make, name, pretrained, feature_cfg=feature_cfg, **(SPECS[name] | kwargs))

    net = family_of(name)
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{net.__name__} of depth {SPECS[name]['depth']}; inference_mode=True is its fused form."
    globals()[name] = build
    __all__.append(name)
    register_model(build)


__all__ = ["DEPTHS", "FAMILIES", "SPECS", "family_of"]
for _name in SPECS:
    _register(_name)
