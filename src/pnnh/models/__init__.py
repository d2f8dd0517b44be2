"""The nets and their twins, in timm's registry under `pnnh_*`, `plain_*` and `cifar_*`."""

from timm import create_model

from pnnh.models import registry
from pnnh.models.cifar import CifarNet, CifarResNet, PlainResNet, PnnhResNet, layers_per_stage

__all__ = ["CifarNet", "CifarResNet", "PlainResNet", "PnnhResNet", "create_model", "layers_per_stage", "registry"]
