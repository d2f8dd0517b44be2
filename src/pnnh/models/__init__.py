"""The nets and their twins, in timm's registry under `pnnh_*`, `plain_*` and `cifar_*`."""

from timm import create_model

from pnnh.models import imagenet_registry, registry, vit_registry
from pnnh.models.cifar import CifarNet, CifarResNet, PlainResNet, PnnhResNet, layers_per_stage
from pnnh.models.imagenet import PlainBottleneckImagenet, PlainImagenet, PnnhImagenet
from pnnh.models.rivals import DiracNet, IsoNet, RepVgg, TatNet
from pnnh.models.vit import CutSkipVit, PlainVit, PnnhVit

__all__ = [
    "CifarNet",
    "CifarResNet",
    "CutSkipVit",
    "DiracNet",
    "IsoNet",
    "PlainBottleneckImagenet",
    "PlainImagenet",
    "PlainResNet",
    "PlainVit",
    "PnnhImagenet",
    "PnnhResNet",
    "PnnhVit",
    "RepVgg",
    "TatNet",
    "create_model",
    "imagenet_registry",
    "layers_per_stage",
    "registry",
    "vit_registry",
]
