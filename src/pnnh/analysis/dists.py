"""DISTS, the perceptual distance of Ding et al. (2020), with the weights it is defined by or not at all.

Needs torchvision's VGG-16 for ImageNet (`vgg16-397923af.pth`, brought by the user) and the metric's own alpha and beta
(in the package DISTS-pytorch, `pip install 'pnnh[dists]'`). Both are known by their SHA-256; nothing else is taken.
Legend: B pictures, C channels, 1475 = 3 + 64 + 128 + 256 + 512 + 512 channels of the picture and five stages.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnnh._errors import UsageError

VGG16 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
WEIGHTS = "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218"
ENDS = (4, 9, 16, 23, 30)  # of the stages in torchvision's vgg16.features: before each pooling
SMALL = 1e-6


class Dists(nn.Module):
    """dists(x, y) -> [B] for pictures [B, 3, H, W] in [0, 1]: 0 for equal ones, at most about 1.

    stages: modules that follow each other, L2 pooling goes in between; alpha, beta: weights of structure and texture,
    one number for each channel of the picture and of every stage. Source: the paper's equations 3 to 7.
    """

    def __init__(self, stages: Sequence[nn.Module], alpha: Tensor, beta: Tensor):
        super().__init__()
        self.stages = nn.ModuleList(stages).eval().requires_grad_(False)
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", alpha.flatten() / total)
        self.register_buffer("beta", beta.flatten() / total)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    @torch.no_grad()
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        texture, structure = zip(*map(_alike, self.maps(x), self.maps(y)), strict=True)  # [B, C] each
        return 1 - torch.cat(texture, 1) @ self.alpha - torch.cat(structure, 1) @ self.beta

    def maps(self, pictures: Tensor) -> Iterator[Tensor]:
        """The picture itself, then the features after each stage."""
        yield pictures
        features = (pictures - self.mean) / self.std
        for index, stage in enumerate(self.stages):
            features = stage(features if index == 0 else _pool(features))
            yield features


def _alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, C, H, W] -> likeness of their means and of what is around them, [B, C] each."""
    mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
    var_x, var_y = x.var((2, 3), correction=0), y.var((2, 3), correction=0)
    covariance = (x * y).mean((2, 3)) - mean_x * mean_y
    texture = (2 * mean_x * mean_y + SMALL) / (mean_x**2 + mean_y**2 + SMALL)
    return texture, (2 * covariance + SMALL) / (var_x + var_y + SMALL)


def _pool(x: Tensor) -> Tensor:
    """Root of the mean square in a 3 x 3 Hann window, every second pixel."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    window = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    return (F.conv2d(x**2, window, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def load_dists(vgg16: str | Path) -> Dists:
    """DISTS from torchvision's VGG-16 file. Raises UsageError for any other file, and without the metric's weights."""
    from torchvision.models.vgg import cfgs, make_layers

    state = _checked(Path(vgg16), VGG16, "torchvision's vgg16-397923af.pth")
    package = importlib.util.find_spec("DISTS_pytorch")
    if package is None or not package.submodule_search_locations:
        raise UsageError("DISTS needs its weights alpha and beta: pip install 'pnnh[dists]'")
    folder = Path(package.submodule_search_locations[0])
    weights = _checked(folder / "weights.pt", WEIGHTS, "the weights of DISTS-pytorch 0.1")
    layers = make_layers(cfgs["D"], batch_norm=False)
    prefix = "features."
    layers.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    for layer in layers:
        layer.inplace = False
    starts = (0, *(end + 1 for end in ENDS[:-1]))
    stages = [nn.Sequential(*layers[start:end]) for start, end in zip(starts, ENDS, strict=True)]
    return Dists(stages, weights["alpha"], weights["beta"])


def _checked(file: Path, expected: str, what: str) -> dict[str, Tensor]:
    """The tensors in `file`, read only once its SHA-256 is the expected one."""
    if not file.is_file():
        raise UsageError(f"no file at {file}; DISTS needs {what}")
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise UsageError(f"{file} is not {what}: its SHA-256 is {found[:12]}..., not {expected[:12]}...")
    return torch.load(file, map_location="cpu", weights_only=True)
