"""Exact evaluation: every test image once, with the interval and the chance level that its accuracy is read against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnnh._modules import eval_mode
from pnnh.data.types import Dataset, Images
from pnnh.train.processes import Alone


@dataclass(frozen=True)
class Evaluation:
    """accuracy: share of images in [0, 1] whose largest logit is the label; loss: mean cross-entropy, nats.

    chance: the accuracy of always answering the most frequent class.
    """

    accuracy: float
    loss: float
    num_images: int
    chance: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy on other images of the same kind (Wilson)."""
        return wilson(self.accuracy, self.num_images)

    def rows(self) -> list[dict]:
        return [asdict(self) | {"interval": self.interval}]


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a binomial share seen in `count` draws (Wilson 1927); z of the normal, 95 % by default."""
    middle = share + z * z / (2 * count)
    width = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    scale = 1 + z * z / count
    return max(0.0, (middle - width) / scale), min(1.0, (middle + width) / scale)


class Normalise(nn.Module):
    """uint8 [N, C, H, W] -> float32, (x / 255 - mean) / std, keeping the memory format."""

    def __init__(self, data: Dataset, device: torch.device | str) -> None:
        super().__init__()
        mean, std = (torch.tensor(value, device=device).view(1, -1, 1, 1) for value in (data.mean, data.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("offset", -mean / std)

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).add_(self.offset)


def autocast(device: torch.device | str, amp: str) -> torch.autocast:
    """The context of the forward pass: bfloat16 where "bf16", otherwise nothing."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=amp == "bf16")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Dataset,
    *,
    split: Images | None = None,
    batch_size: int = 512,
    device: torch.device | str | None = None,
    amp: str = "fp32",
    processes: Alone | None = None,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Accuracy and loss of `model` (in eval mode, put back afterwards) on data.test, or on another `split`.

    device: default the model's own. Waits for the device once, at the end.
    processes: each looks at its part of the images, none twice; all get the same result.
    between: called between batches; what it raises ends the evaluation.
    """
    processes, split = processes or Alone(), data.test if split is None else split
    device = next(model.parameters()).device if device is None else torch.device(device)
    normalise = Normalise(data, device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    seen = torch.zeros(data.num_classes, dtype=torch.int64, device=device)  # images of each class
    with eval_mode(model):
        batches = split.batches(batch_size, processes.rank, processes.size)
        for number, (images, labels) in enumerate(_in_step(batches, processes)):
            if number:
                between()
            if labels is None:
                continue
            labels = labels.to(device, non_blocking=True)
            with autocast(device, amp):
                logits = model(normalise(images.to(device, non_blocking=True)))
            correct += (logits.argmax(1) == labels).sum()
            loss += F.cross_entropy(logits.float(), labels, reduction="sum").double()
            seen += labels.bincount(minlength=data.num_classes)
    seen = processes.sum(seen)
    total = int(seen.sum())
    accuracy, mean_loss = processes.sum(correct).item() / total, processes.sum(loss).item() / total
    return Evaluation(accuracy, mean_loss, total, seen.max().item() / total)


def _in_step(batches: Iterator[tuple[Tensor, Tensor]], processes: Alone) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches of this process, then (nothing, None) until no process has any left: `between` may talk to all."""
    for batch in batches:
        processes.any(True)
        yield batch
    while processes.any(False):
        yield torch.empty(0), None
