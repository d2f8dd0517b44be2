"""Our names in timm's registry: importing this module makes `timm.create_model("pnnh_resnet56")` work."""

from __future__ import annotations

from timm.models import generate_default_cfgs

from pnnh.models._registration import default_cfg, register
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

CFG = default_cfg(
    32,
    num_classes=10,
    pool_size=(8, 8),
    min_input_size=(3, 8, 8),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    crop_pct=1.0,
    interpolation="bilinear",
)
FEATURES = {"out_indices": (0, 1, 2), "flatten_sequential": True}


def family_of(name: str) -> type[CifarNet]:
    """The net class behind a registered name."""
    return NETS[name]


__all__ = ["DEPTHS", "FAMILIES", "SPECS", "family_of"]
default_cfgs = generate_default_cfgs(dict.fromkeys(SPECS, CFG))
for _name, _spec in SPECS.items():
    register(__name__, _name, NETS[_name], _spec, f"of depth {_spec['depth']}", FEATURES)
