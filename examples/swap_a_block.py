"""Your own residual net, and the same net with its residual stages replaced by plain ones: a switch in one place.

    python examples/swap_a_block.py

Prints what the two forms store and compute, whether each is plain, and that both give logits of the same shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pnnh
from pnnh.layers import AlternatingStage


class ResidualBlock(nn.Module):
    """Before: relu(x + f(x))."""

    def __init__(self, width: int, out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        same = width == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.shortcut(x) + self.body(x)).relu()


def residual_stage(width: int, out: int, blocks: int, stride: int) -> nn.Module:
    sizes = [(width, stride), *[(out, 1)] * (blocks - 1)]
    return nn.Sequential(*(ResidualBlock(before, out, step) for before, step in sizes))


def plain_stage(width: int, out: int, blocks: int, stride: int) -> nn.Module:
    """After: as many layers, two a block; a stream as wide as before and learners three quarters of it."""
    return AlternatingStage(width, out, 3 * out // 4, 2 * blocks, stride=stride)


class YourNet(nn.Module):
    """`plain` is the switch."""

    def __init__(self, num_classes: int = 10, *, plain: bool = False):
        super().__init__()
        stage = plain_stage if plain else residual_stage
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.Sequential(stage(16, 16, 3, 1), stage(16, 32, 3, 2), stage(32, 64, 3, 2))
        self.norm, self.classifier = nn.BatchNorm2d(64), nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, num_classes]."""
        return self.classifier(self.norm(self.stages(self.stem(x))).mean((2, 3)))


def main() -> dict[str, dict]:
    images, found = torch.randn(2, 3, 32, 32), {}
    for name, plain in (("before", False), ("after", True)):
        torch.manual_seed(0)
        net = YourNet(plain=plain)
        certificate = pnnh.certify(net, images)
        found[name] = {
            "parameters": sum(p.numel() for p in net.parameters()),
            "plain": certificate.plain,
            "activations": certificate.num_activations,
            "logits": tuple(net(images).shape),
        }
        print(name, found[name])
    return found


if __name__ == "__main__":
    main()
