"""The nets and their twins, in timm's registry under `pnnh_*`, `plain_*` and `cifar_*`."""

from timm import create_model

from pnnh.models import registry, vit_registry
from pnnh.models.cifar import CifarNet, CifarResNet, PlainResNet, PnnhResNet, layers_per_stage
from pnnh.models.rivals import DiracNet, IsoNet, RepVgg, TatNet
from pnnh.models.vit import CutSkipVit, PlainVit, PnnhVit

__all__ = [
    "CifarNet",
    "CifarResNet",
    "CutSkipVit",
    "DiracNet",
    "IsoNet",
    "PlainResNet",
    "PlainVit",
    "PnnhResNet",
    "PnnhVit",
    "RepVgg",
    "TatNet",
    "create_model",
    "layers_per_stage",
    "registry",
    "vit_registry",
]
