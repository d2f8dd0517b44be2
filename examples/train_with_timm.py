"""A training script as timm's users write it, with a net that is made of this package's layers.

    python examples/train_with_timm.py --data photos --epochs 10       # photos/train/CLASS/*, photos/test/CLASS/*

The net is timm-registered, so data, transforms, optimiser and scheduler are timm's own; only the stage is ours.
"""

from __future__ import annotations

import argparse

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from pnnh.layers import AlternatingStage, PlainOptions


class Net(nn.Module):
    """A stem, two plain stages of six layers each, and a classifier."""

    def __init__(self, num_classes: int, width: int = 32):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        options = PlainOptions(gain=0.3)
        self.stages = nn.Sequential(
            AlternatingStage(width, width, 3 * width // 4, 6, options=options),
            AlternatingStage(width, 2 * width, 3 * width // 2, 6, stride=2, options=options),
        )
        self.head = nn.Sequential(
            nn.BatchNorm2d(2 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [B, num_classes]."""
        return self.head(self.stages(self.stem(x)))


def loader(folder: str, size: int, batch_size: int, training: bool):
    data = create_dataset("", root=folder, is_training=training)
    return create_loader(
        data, (3, size, size), batch_size, is_training=training, use_prefetcher=False, num_workers=0, hflip=0.5
    )


def accuracy(model: nn.Module, batches) -> float:
    """Share of the images in `batches` that `model` gets right."""
    model.eval()
    with torch.no_grad():
        right = [(model(images).argmax(1) == labels).float() for images, labels in batches]
    return torch.cat(right).mean().item()


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("--model", help="a timm name such as pnnh_resnet20, in place of the net above")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.1)
    asked = parser.parse_args(arguments)
    batches = loader(f"{asked.data}/train", asked.size, asked.batch_size, True)
    classes = len(batches.dataset.reader.class_to_idx)
    if asked.model:
        import pnnh.models  # noqa: F401  registers the names

        model = timm.create_model(asked.model, num_classes=classes)
    else:
        model = Net(classes)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=asked.lr, weight_decay=5e-4, momentum=0.9)
    scheduler = CosineLRScheduler(optimizer, t_initial=asked.epochs)
    reached = 0.0
    for epoch in range(asked.epochs):
        model.train()
        for images, labels in batches:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step(epoch + 1)
        reached = accuracy(model, loader(f"{asked.data}/test", asked.size, asked.batch_size, False))
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, test {100 * reached:.1f} %", flush=True)
    return reached


if __name__ == "__main__":
    main()
