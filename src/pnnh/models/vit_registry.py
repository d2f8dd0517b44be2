"""The Transformers' names in timm's registry: `pnnh_vit_small_patch16_224` and so on, sizes as timm's own ViTs."""

from __future__ import annotations

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import checkpoint_filter_fn

from pnnh.layers.folded_block import fold_blocks
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


def _cfg(img_size: int) -> dict:
    return {
        "url": "",
        "input_size": (3, img_size, img_size),
        "pool_size": None,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    } | (IMAGENET if img_size == 224 else SMALL_IMAGES)


default_cfgs = generate_default_cfgs({name: _cfg(spec["img_size"]) for name, spec in SPECS.items()})


def family_of(name: str) -> type[SkiplessVit]:
    """The net class behind a registered name."""
    return next(net for family, net in FAMILIES.items() if name.startswith(family))


def folded(net: SkiplessVit) -> SkiplessVit:
    """`net` with its plain blocks folded, in place, as `pnnh.fuse` does; in eval mode."""
    dtype = net.patch_embed.proj.weight.dtype
    fold_blocks(net)
    return net.to(dtype).eval()


def _register(name: str) -> None:
    def build(pretrained: bool = False, inference_mode: bool = False, **kwargs) -> SkiplessVit:
        net = family_of(name)
        return build_model_with_cfg(
            (lambda **kwargs: folded(net(**kwargs))) if inference_mode else net,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": 3, "feature_cls": "getter"},
            **(SPECS[name] | kwargs),
        )

    spec = SPECS[name]
    build.__name__ = build.__qualname__ = name
    what = f"{family_of(name).__name__}, width {spec['embed_dim']}, patches of {spec['patch_size']} pixels"
    build.__doc__ = f"{what}; inference_mode=True is its fused form."
    globals()[name] = build
    __all__.append(name)
    register_model(build)


__all__ = ["FAMILIES", "SIZES", "SPECS", "family_of"]
for _name in SPECS:
    _register(_name)
