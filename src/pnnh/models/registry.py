"""Our nets in timm's registry, one table: importing it makes `timm.create_model("pnnh_resnet56")` work.

`cifar_resnet20_narrow`, `_short`, `_shared` and `_same_block` are residual nets of about the size of `pnnh_resnet20`;
`cifar_resnet20_2015` is He et al.'s own: all blocks start at scale 1, features are pooled without a norm.

`pnnh_resnet50` is not a bottleneck net. A bottleneck's stream is wide and its 3x3 convolution thin; a plain layer has
to carry its stream through every activation, which is expensive for a stream of 2,048 channels. So the net has 48
layers of 3x3 at RepVGG's layout (8, 14, 24 and the fewest possible in the last stage, which has most parameters and
fewest pixels), as wide as resnet50's compute and 0.56 of its parameters allow.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from pnnh.models import cifar, imagenet, rivals, vit

DEPTHS = (20, 32, 38, 44, 56, 110)
CIFAR_NETS: dict[str, tuple[type[cifar.CifarNet], dict[str, Any]]] = {  # `{}` is the depth, or _tiny
    "pnnh_resnet{}": (cifar.PnnhResNet, {}),
    "plain_resnet{}": (cifar.PlainResNet, {}),
    "cifar_resnet{}": (cifar.CifarResNet, {}),
    "cifar_resnet{}_2015": (cifar.CifarResNet, {"gain": 1.0, "head_norm": False}),
    "cifar_resnet{}_same_block": (cifar.SameBlockResNet, {}),
    "cifar_resnet{}_narrow": (cifar.NarrowResNet, {}),
    "cifar_resnet{}_short": (cifar.ShortResNet, {}),
    "cifar_resnet{}_shared": (cifar.SharedResNet, {}),
    "cifar_diracnet{}": (rivals.DiracNet, {}),
    "cifar_repvgg{}": (rivals.RepVgg, {}),
    "cifar_isonet{}": (rivals.IsoNet, {}),
    "cifar_tatnet{}": (rivals.TatNet, {}),
}
LAYOUT50 = {"num_layers": (8, 14, 24, 2), "widths": (80, 160, 320, 640), "learner_ratio": 0.65}
BOTTLENECKS50 = {"num_layers": (9, 12, 18, 9), "widths": (256, 512, 1024, 2048)}
TEST = {"num_layers": (4, 2, 4, 2), "widths": (8, 16, 24, 32), "stem_width": 8}
IMAGENET_NETS: dict[str, tuple[type[imagenet.ImagenetNet], dict[str, Any]]] = {
    "pnnh_resnet18": (imagenet.PnnhImagenet, {"num_layers": (4, 4, 4, 4)}),
    "pnnh_resnet34": (imagenet.PnnhImagenet, {"num_layers": (6, 8, 12, 6), "learner_ratio": 0.75}),
    "pnnh_resnet50": (imagenet.PnnhImagenet, LAYOUT50),
    "residual_resnet18": (imagenet.ResidualImagenet, {"num_layers": (4, 4, 4, 4)}),
    "residual_resnet18_narrow": (imagenet.NarrowImagenet, {"num_layers": (4, 4, 4, 4)}),
    "plain_resnet18": (imagenet.PlainImagenet, {"num_layers": (4, 4, 4, 4)}),
    "plain_resnet34": (imagenet.PlainImagenet, {"num_layers": (6, 8, 12, 6)}),
    "plain_resnet50": (imagenet.PlainBottleneckImagenet, BOTTLENECKS50),
    "pnnh_resnet_test": (imagenet.PnnhImagenet, TEST),
    "residual_resnet_test": (imagenet.ResidualImagenet, TEST),
    "plain_resnet_test": (imagenet.PlainImagenet, TEST),
}
VITS = {"pnnh_vit": vit.PnnhVit, "plain_vit": vit.PlainVit, "cutskip_vit": vit.CutSkipVit}
VIT_SIZES = {  # as timm's vit_tiny, vit_small and vit_base
    "tiny": {"embed_dim": 192, "num_heads": 3},
    "small": {"embed_dim": 384, "num_heads": 6},
    "base": {"embed_dim": 768, "num_heads": 12},
}
VIT_INPUTS = {"patch16_224": (16, 224), "patch4_32": (4, 32)}

MEAN_STD = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}  # of CIFAR-10
CIFAR_CFG = MEAN_STD | {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "min_input_size": (3, 8, 8),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
}
IMAGENET_CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "min_input_size": (3, 32, 32),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.95,
}
VIT_CFG = {"pool_size": None, "fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"}
VIT_IMAGENET = {"num_classes": 1000, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 0.9}
VIT_CIFAR = MEAN_STD | {"num_classes": 10, "crop_pct": 1.0}
COMMON_CFG = {"url": "", "fixed_input_size": False, "first_conv": "stem.0", "classifier": "head.fc"}
COMMON_CFG |= {"license": "apache-2.0", "interpolation": "bicubic"}


@dataclass(frozen=True)
class Entry:
    """A net under a name: `net(**spec)`; cfg, features and options are what timm keeps of a model."""

    net: type[nn.Module]
    spec: dict[str, Any]
    cfg: dict[str, Any]
    features: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        return f"{self.net.__name__}({', '.join(f'{name}={value}' for name, value in self.spec.items())})"


def cifar_entry(net: type[nn.Module], spec: dict[str, Any]) -> Entry:
    return Entry(net, spec, CIFAR_CFG, {"out_indices": (0, 1, 2), "flatten_sequential": True})


def imagenet_entry(net: type[nn.Module], spec: dict[str, Any]) -> Entry:
    return Entry(net, spec, IMAGENET_CFG, {"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"})


def vit_entry(net: type[nn.Module], patch: int, side: int, **sizes: int) -> Entry:
    cfg = {"input_size": (3, side, side)} | VIT_CFG | (VIT_IMAGENET if side == 224 else VIT_CIFAR)
    spec = {"patch_size": patch, "img_size": side} | sizes
    options = {"pretrained_filter_fn": checkpoint_filter_fn}
    return Entry(net, spec, cfg, {"out_indices": 3, "feature_cls": "getter"}, options)


MODELS: dict[str, Entry] = {
    name.format(depth): cifar_entry(net, {"depth": depth} | spec)
    for name, (net, spec) in CIFAR_NETS.items()
    for depth in DEPTHS
}
MODELS |= {
    name.format("_tiny"): cifar_entry(net, {"depth": 8, "widths": (4, 8, 16)} | spec)
    for name, (net, spec) in CIFAR_NETS.items()
}
MODELS |= {name: imagenet_entry(net, spec) for name, (net, spec) in IMAGENET_NETS.items()}
MODELS |= {
    f"{family}_{size}_{kind}": vit_entry(net, *inputs, **VIT_SIZES[size], depth=12)
    for family, net in VITS.items()
    for size in VIT_SIZES
    for kind, inputs in VIT_INPUTS.items()
}
MODELS |= {
    f"{family}_test_patch4_16": vit_entry(net, 4, 16, embed_dim=32, num_heads=2, depth=3)
    for family, net in VITS.items()
}


def family_of(name: str) -> type[nn.Module]:
    """The net class behind a registered name."""
    return MODELS[name].net


def register(name: str, entry: Entry) -> None:
    """Make `name` a function of this module that builds the net, and an entry of timm's registry."""

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        features = dict(entry.features)  # timm pops from it and writes to it
        return build_model_with_cfg(
            entry.net, name, pretrained, feature_cfg=features, **entry.options, **entry.spec | kwargs
        )

    build.__module__, build.__name__, build.__qualname__ = __name__, name, name
    build.__doc__ = f"{entry.summary}."
    setattr(sys.modules[__name__], name, build)
    register_model(build)  # adds the name to __all__


__all__ = ["MODELS", "family_of"]
default_cfgs = generate_default_cfgs({name: COMMON_CFG | entry.cfg for name, entry in MODELS.items()})
for _name, _entry in MODELS.items():
    register(_name, _entry)
