"""The ImageNet-shaped nets in timm's registry: `pnnh_resnet18`, `pnnh_resnet34`, `pnnh_resnet50` and plain twins.

pnnh_resnet50 is no bottleneck net. A bottleneck's stream is wide and its 3x3 convolution thin; a plain layer has to
carry its stream through every activation, which a stream of 2,048 channels makes dear, and 3x3 convolutions run faster
than 1x1 ones of equal count. So it is 48 layers of 3x3 at RepVGG's layout (8, 14, 24 and the fewest possible in the
last stage, where parameters are dear and pixels few), as wide as resnet50's compute and 0.56 of its parameters allow.
"""

from __future__ import annotations

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from pnnh.models.imagenet import ImagenetNet, PlainBottleneckImagenet, PlainImagenet, PnnhImagenet
from pnnh.models.registry import in_form

LAYOUT50 = {"num_layers": (8, 14, 24, 2), "widths": (80, 160, 320, 640), "learner_ratio": 0.7}
BOTTLENECKS50 = {"num_layers": (9, 12, 18, 9), "widths": (256, 512, 1024, 2048)}
TEST = {"num_layers": (4, 2, 4, 2), "widths": (8, 16, 24, 32), "stem_width": 8}

NETS: dict[str, tuple[type[ImagenetNet], dict]] = {
    "pnnh_resnet18": (PnnhImagenet, {"num_layers": (4, 4, 4, 4)}),
    "pnnh_resnet34": (PnnhImagenet, {"num_layers": (6, 8, 12, 6)}),
    "pnnh_resnet50": (PnnhImagenet, LAYOUT50),
    "plain_resnet18": (PlainImagenet, {"num_layers": (4, 4, 4, 4)}),
    "plain_resnet34": (PlainImagenet, {"num_layers": (6, 8, 12, 6)}),
    "plain_resnet50": (PlainBottleneckImagenet, BOTTLENECKS50),
    "pnnh_resnet_test": (PnnhImagenet, TEST),
    "plain_resnet_test": (PlainImagenet, TEST),
}


def _cfg() -> dict:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "min_input_size": (3, 32, 32),
        "fixed_input_size": False,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "first_conv": "stem.0",
        "classifier": "head.fc",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({name: _cfg() for name in NETS})


def _register(name: str) -> None:
    net, spec = NETS[name]

    def build(pretrained: bool = False, inference_mode: bool = False, **kwargs) -> ImagenetNet:
        feature_cfg = {"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"}
        make = in_form(net, inference_mode)
        return build_model_with_cfg(make, name, pretrained, feature_cfg=feature_cfg, **(spec | kwargs))

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{net.__name__} with layers {spec['num_layers']}; inference_mode=True is its fused form."
    globals()[name] = build
    __all__.append(name)
    register_model(build)


__all__ = ["NETS"]
for _name in NETS:
    _register(_name)
