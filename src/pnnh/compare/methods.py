"""The nets that can be compared, by method, in three families: convolutional nets shaped for CIFAR or ImageNet, ViTs.

A twin differs from the PNNH net as little as its question allows: all have the same start of a block's last norm, the
same norm before the pooling, the same recipe. A method's learning rate is its own, tuned with the same budget for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import timm
from torch import nn

from pnnh._errors import UsageError
from pnnh.data import Dataset
from pnnh.models import layers_per_stage, registry


@dataclass(frozen=True)
class Method:
    """Nets of all depths. model: name in timm's registry, {} for the depth. options: what they are built with."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)


CNN_METHODS: dict[str, Method] = {
    "plain": Method("plain_resnet{}"),
    "residual": Method("cifar_resnet{}"),
    "pnnh": Method("pnnh_resnet{}"),
    "pnnh_wide": Method("pnnh_resnet{}", {"widths": (16, 48, 80)}),  # 0.78 to 0.88 of the residual net's parameters
    "residual_same_block": Method("cifar_resnet{}_same_block"),
    "residual_narrow": Method("cifar_resnet{}_narrow"),
    "residual_short": Method("cifar_resnet{}_short"),
    "residual_shared": Method("cifar_resnet{}_shared"),
    "residual_2015": Method("cifar_resnet{}_2015"),
    "diracnet": Method("cifar_diracnet{}"),
    "repvgg": Method("cifar_repvgg{}", {"gain": 0.1}),
    "isonet": Method("cifar_isonet{}", {"gamma": 0.01}),
    "tat": Method("cifar_tatnet{}"),
}
IMAGENET_METHODS: dict[str, Method] = {
    "plain": Method("plain_resnet{}"),
    "residual": Method("residual_resnet{}"),
    "residual_narrow": Method("residual_resnet{}_narrow"),
    "pnnh": Method("pnnh_resnet{}"),
}
AVERAGED = {"global_pool": "avg", "class_token": False}  # as our nets pool
VIT_METHODS: dict[str, Method] = {
    "residual": Method("vit_tiny_patch16_224", AVERAGED),
    "plain": Method("plain_vit_tiny_patch4_32"),
    "pnnh": Method("pnnh_vit_tiny_patch4_32"),
    "skip_init": Method("cutskip_vit_tiny_patch4_32"),
}

# Learning rates of their own, by recipe; a method that is not named has the recipe's.
# The residual nets and the plain net run at the PNNH net's rate, 0.3, until results/scripts/tune.py has been run at
# full size. Rates and options of the rivals were chosen on held-out images of 16 px, at depth 56 in 4 epochs. `long` is
# the literature's recipe, whose rate holds for all methods that train at it.
RIVALS = {"diracnet": 1.0, "repvgg": 1.0, "isonet": 0.01, "tat": 0.001}
OURS = dict.fromkeys([name for name in CNN_METHODS if name not in RIVALS and name != "residual_2015"], 0.3)
CNN_RATES: dict[str, dict[str, float]] = {
    "default": OURS | RIVALS,
    "fast": {"residual_2015": 0.1} | RIVALS,
    "long": {"isonet": 0.01, "tat": 0.001},
    "muon": {"diracnet": 0.06, "isonet": 6e-4, "tat": 6e-4},
}
VIT_RATES: dict[str, dict[str, float]] = {"default": {"skip_init": 3e-4}}


@dataclass(frozen=True)
class Cnn:
    """The CIFAR-shaped convolutional nets; depths are 6n + 2."""

    methods: ClassVar[Mapping[str, Method]] = CNN_METHODS
    rates: ClassVar[Mapping[str, Mapping[str, float]]] = CNN_RATES
    usual: ClassVar[tuple[str, ...]] = ("plain", "residual", "pnnh")
    depths: ClassVar[tuple[int, ...]] = (20, 56)
    named: ClassVar[tuple[int, ...]] = registry.DEPTHS  # depths at which the registry has all nets

    def check(self, depth: int) -> None:
        """Raises UsageError for a depth that no net of this family has."""
        try:
            layers_per_stage(depth)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def build(self, method: str, depth: int, data: Dataset, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        """The net and its spec, the name and arguments that build it again. `options` go to the net."""
        model = self.methods[method].model
        sizes = {"num_classes": data.num_classes, "in_chans": data.channels}
        kwargs = sizes | self.methods[method].options | options
        name = model.format(depth)
        if depth not in self.named:  # a depth of 50 names an ImageNet-shaped net
            name, kwargs = model.format(20), {"depth": depth} | kwargs
        return timm.create_model(name, **kwargs), {"name": name, "kwargs": kwargs}

    def rate(self, method: str, depth: int, recipe: str, common: float) -> float:
        """The peak of the learning rate; `common` is the recipe's."""
        return self.rates.get(recipe, {}).get(method, common)

    def settings(self) -> dict[str, Any]:
        """What a record says of the family beside the methods and depths."""
        return {"family": "cnn"}


@dataclass(frozen=True)
class Imagenet(Cnn):
    """Nets of ResNet-18's shape, for images of 64 pixels and more; the recipe's rate holds for all."""

    methods: ClassVar[Mapping[str, Method]] = IMAGENET_METHODS
    rates: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    usual: ClassVar[tuple[str, ...]] = tuple(IMAGENET_METHODS)
    depths: ClassVar[tuple[int, ...]] = (18,)
    named: ClassVar[tuple[int, ...]] = (18,)

    def check(self, depth: int) -> None:
        """Raises UsageError for another depth than 18."""
        if depth not in self.named:
            raise UsageError(f"depth {depth} must be 18: the ImageNet-shaped nets that have twins of all kinds")

    def settings(self) -> dict[str, Any]:
        """As `Cnn.settings`."""
        return {"family": "imagenet"}


HEAD_WIDTH = 32


@dataclass(frozen=True)
class Vit:
    """Vision Transformers that are equally wide and deep; heads are 32 wide. Raises UsageError for misfits.

    width: of a token. patch: pixels a side of a patch; it must divide the images.
    """

    width: int = 96
    patch: int = 4

    methods: ClassVar[Mapping[str, Method]] = VIT_METHODS
    rates: ClassVar[Mapping[str, Mapping[str, float]]] = VIT_RATES
    usual: ClassVar[tuple[str, ...]] = tuple(VIT_METHODS)
    depths: ClassVar[tuple[int, ...]] = (12,)

    def __post_init__(self) -> None:
        if self.width < HEAD_WIDTH or self.width % HEAD_WIDTH:
            raise UsageError(f"width {self.width} must be a multiple of {HEAD_WIDTH}, the width of a head")
        if self.patch < 1:
            raise UsageError(f"patch {self.patch} must be at least 1 pixel")

    def check(self, depth: int) -> None:
        """Raises UsageError for fewer than 3 blocks."""
        if depth < 3:
            raise UsageError(f"depth {depth} must be at least 3 blocks")

    def build(self, method: str, depth: int, data: Dataset, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        """As `Cnn.build`."""
        sizes = {"img_size": data.image_size, "patch_size": self.patch, "embed_dim": self.width, "depth": depth}
        sizes |= {"num_heads": self.width // HEAD_WIDTH, "num_classes": data.num_classes, "in_chans": data.channels}
        name, kwargs = self.methods[method].model, sizes | self.methods[method].options | options
        try:
            return timm.create_model(name, **kwargs), {"name": name, "kwargs": kwargs}
        except ValueError as error:
            raise UsageError(str(error)) from None

    def rate(self, method: str, depth: int, recipe: str, common: float) -> float:
        """As `Cnn.rate`; beyond 12 blocks it falls as 1 / depth where no skip keeps changes from compounding (ours)."""
        rate = self.rates.get(recipe, {}).get(method, common)
        return rate if method == "residual" else rate * min(1.0, 12 / depth)

    def settings(self) -> dict[str, Any]:
        """As `Cnn.settings`."""
        return {"family": "vit"} | asdict(self)


def rate_for(model: str, recipe: str) -> float | None:
    """The tuned learning rate of the method that the registered CIFAR net `model` belongs to, or None."""
    for method, made in CNN_METHODS.items():
        if not made.options and model in {made.model.format(depth) for depth in registry.DEPTHS}:
            return CNN_RATES.get(recipe, {}).get(method)
    return None
