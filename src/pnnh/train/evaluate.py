"""Exact evaluation: every image once, the last batch as short as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnnh.data import Dataset, Images
from pnnh.train.processes import Alone


@dataclass(frozen=True)
class Evaluation:
    """accuracy: share of images in [0, 1] whose largest logit is the label; loss: mean cross-entropy, nats."""

    accuracy: float
    loss: float
    num_images: int

    def rows(self) -> list[dict]:
        return [asdict(self)]


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
    processes = processes or Alone()
    device = next(model.parameters()).device if device is None else torch.device(device)
    split = data.test if split is None else split
    normalise = Normalise(data, device)
    training = {module: module.training for module in model.modules()}
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    count = torch.zeros((), dtype=torch.int64, device=device)
    try:
        for number, (images, labels) in enumerate(
            _together(split.batches(batch_size, processes.rank, processes.size), data, processes)
        ):
            if number:
                between()
            labels = labels.to(device, non_blocking=True)
            with autocast(device, amp):
                logits = model(normalise(images.to(device, non_blocking=True)))[: len(labels)]
            correct += (logits.argmax(1) == labels).sum()
            loss += F.cross_entropy(logits.float(), labels, reduction="sum").double()
            count += len(labels)
    finally:
        for module, was in training.items():
            module.training = was
    total = int(processes.sum(count).item())
    return Evaluation(processes.sum(correct).item() / total, processes.sum(loss).item() / total, total)


def _together(
    batches: Iterator[tuple[Tensor, Tensor]], data: Dataset, processes: Alone
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of this process, then black images without labels until no process has any left.

    A model that is spread over the processes answers only where all of them ask.
    """
    for batch in batches:
        processes.any(True)
        yield batch
    nothing = torch.zeros(1, data.channels, data.image_size, data.image_size, dtype=torch.uint8)
    while processes.any(False):
        yield nothing, torch.zeros(0, dtype=torch.int64)
