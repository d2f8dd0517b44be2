"""The ImageNet-shaped nets in timm's registry: `pnnh_resnet18`, `pnnh_resnet34`, `pnnh_resnet50` and plain twins.

pnnh_resnet50 is no bottleneck net. A bottleneck's stream is wide and its 3x3 convolution thin; a plain layer has to
carry its stream through every activation, which a stream of 2,048 channels makes dear. So it is 48 layers of 3x3 at
RepVGG's layout (8, 14, 24 and the fewest possible in the last stage, where parameters are dear and pixels few), as wide
as resnet50's compute and 0.56 of its parameters allow.
"""

from __future__ import annotations

from timm.models import generate_default_cfgs

from pnnh.models._registration import default_cfg, register
from pnnh.models.imagenet import ImagenetNet, PlainBottleneckImagenet, PlainImagenet, PnnhImagenet

LAYOUT50 = {"num_layers": (8, 14, 24, 2), "widths": (80, 160, 320, 640), "learner_ratio": 0.65}
BOTTLENECKS50 = {"num_layers": (9, 12, 18, 9), "widths": (256, 512, 1024, 2048)}
TEST = {"num_layers": (4, 2, 4, 2), "widths": (8, 16, 24, 32), "stem_width": 8}

NETS: dict[str, tuple[type[ImagenetNet], dict]] = {
    "pnnh_resnet18": (PnnhImagenet, {"num_layers": (4, 4, 4, 4)}),
    "pnnh_resnet34": (PnnhImagenet, {"num_layers": (6, 8, 12, 6), "learner_ratio": 0.75}),
    "pnnh_resnet50": (PnnhImagenet, LAYOUT50),
    "plain_resnet18": (PlainImagenet, {"num_layers": (4, 4, 4, 4)}),
    "plain_resnet34": (PlainImagenet, {"num_layers": (6, 8, 12, 6)}),
    "plain_resnet50": (PlainBottleneckImagenet, BOTTLENECKS50),
    "pnnh_resnet_test": (PnnhImagenet, TEST),
    "plain_resnet_test": (PlainImagenet, TEST),
}

CFG = default_cfg(
    224,
    num_classes=1000,
    pool_size=(7, 7),
    min_input_size=(3, 32, 32),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop_pct=0.95,
)
FEATURES = {"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"}

__all__ = ["NETS"]
default_cfgs = generate_default_cfgs(dict.fromkeys(NETS, CFG))
for _name, (_net, _spec) in NETS.items():
    register(__name__, _name, _net, _spec, f"with layers {_spec['num_layers']}", FEATURES)
