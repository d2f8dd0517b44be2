"""The batches of a run from images in memory: a function of (seed, step), whatever came before."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from pnnh.train.augment import Augment
from pnnh.train.processes import Alone


class Feed:
    """Random crops and mirror images of the training images, in an order of its own for every epoch.

    images: uint8 [N, C, H, W], labels [N]. Of each batch a process gets its share.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        augment: Augment,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        processes: Alone,
    ) -> None:
        self.augment, self.batch_size, self.seed, self.device = augment, batch_size, seed, device
        self.part = processes.share(batch_size)
        self.steps_per_epoch = len(labels) // batch_size
        self._images, self._labels = images, labels.to(device)
        if device.type != "cpu" and _fits(images, device):
            self._images = images.to(device)
        self._epoch, self._order = None, None

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """uint8 images [n, C, H, W] and labels [n] of update number `step`, on the device."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            generator = numbered(self.seed, "order", epoch, "cpu")
            self._epoch, self._order = epoch, torch.randperm(len(self._labels), generator=generator)
        index = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        generator = numbered(self.seed, "augment", step, self.device)
        images, inside = self._images, index.to(self.device, non_blocking=True)
        if images.device != self.device:  # too large to live on the device: the batch travels
            images, inside_batch = images[index].to(self.device), torch.arange(len(index), device=self.device)
        else:
            inside_batch = inside
        return self.augment.draw(images, inside_batch, generator, self.part), self._labels[inside[self.part]]


def numbered(seed: int, purpose: str, count: int, device: torch.device | str) -> torch.Generator:
    """Independent random numbers for one purpose at one time of one run."""
    digest = hashlib.sha256(f"{seed} {purpose} {count}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "big"))


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the training images take at most half of the device's free memory."""
    return device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] / 2
