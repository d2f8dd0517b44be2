"""The nets and their twins, in timm's registry under `pnnh_*`, `plain_*` and `cifar_*`."""

from timm import create_model

from pnnh.models import registry
from pnnh.models.cifar import (
    CifarNet,
    CifarResNet,
    NarrowResNet,
    PlainResNet,
    PnnhResNet,
    SameBlockResNet,
    SharedResNet,
    ShortResNet,
    layers_per_stage,
)
from pnnh.models.imagenet import NarrowImagenet, PlainBottleneckImagenet, PlainImagenet, PnnhImagenet, ResidualImagenet
from pnnh.models.rivals import DiracNet, IsoNet, RepVgg, TatNet
from pnnh.models.vit import CutSkipVit, PlainVit, PnnhVit

__all__ = [
    "CifarNet",
    "CifarResNet",
    "CutSkipVit",
    "DiracNet",
    "IsoNet",
    "NarrowImagenet",
    "NarrowResNet",
    "PlainBottleneckImagenet",
    "PlainImagenet",
    "PlainResNet",
    "PlainVit",
    "PnnhImagenet",
    "PnnhResNet",
    "PnnhVit",
    "RepVgg",
    "ResidualImagenet",
    "SameBlockResNet",
    "SharedResNet",
    "ShortResNet",
    "TatNet",
    "create_model",
    "layers_per_stage",
    "registry",
]
