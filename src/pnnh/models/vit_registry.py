"""The Transformers' names in timm's registry: `pnnh_vit_small_patch16_224` and so on, sizes as timm's own ViTs."""

from __future__ import annotations

from timm.models import generate_default_cfgs
from timm.models.vision_transformer import checkpoint_filter_fn

from pnnh.models._registration import default_cfg, register
from pnnh.models.vit import CutSkipVit, PlainVit, PnnhVit, SkiplessVit

FAMILIES: dict[str, type[SkiplessVit]] = {"pnnh_vit": PnnhVit, "plain_vit": PlainVit, "cutskip_vit": CutSkipVit}
SIZES = {  # as timm's vit_tiny, vit_small and vit_base
    "tiny": {"embed_dim": 192, "num_heads": 3},
    "small": {"embed_dim": 384, "num_heads": 6},
    "base": {"embed_dim": 768, "num_heads": 12},
}
INPUTS = {"patch16_224": (16, 224), "patch4_32": (4, 32)}
IMAGENET = {"num_classes": 1000, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 0.9}
SMALL_IMAGES = {"num_classes": 10, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616), "crop_pct": 1.0}
TOKENS = {"pool_size": None, "fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"}
FEATURES = {"out_indices": 3, "feature_cls": "getter"}

SPECS: dict[str, dict] = {
    f"{family}_{size}_{kind}": {"patch_size": patch, "img_size": side, "depth": 12, **SIZES[size]}
    for family in FAMILIES
    for size in SIZES
    for kind, (patch, side) in INPUTS.items()
}
SPECS |= {
    f"{family}_test_patch4_16": {"patch_size": 4, "img_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 3}
    for family in FAMILIES
}


def _cfg(side: int) -> dict:
    return default_cfg(side, **TOKENS | (IMAGENET if side == 224 else SMALL_IMAGES))


def family_of(name: str) -> type[SkiplessVit]:
    """The net class behind a registered name."""
    return next(net for family, net in FAMILIES.items() if name.startswith(family))


__all__ = ["FAMILIES", "SIZES", "SPECS", "family_of"]
default_cfgs = generate_default_cfgs({name: _cfg(spec["img_size"]) for name, spec in SPECS.items()})
for _name, _spec in SPECS.items():
    _sizes = f"of width {_spec['embed_dim']}, patches of {_spec['patch_size']} pixels"
    register(__name__, _name, family_of(_name), _spec, _sizes, FEATURES, pretrained_filter_fn=checkpoint_filter_fn)
