"""The batches of a run: a function of (seed, step), whatever came before. `feed_of` chooses by where images lie."""

from __future__ import annotations

import torch
from torch import Tensor

from pnnh._errors import UsageError
from pnnh.data.augment import Augment, ResizedCrop, numbered
from pnnh.data.disk import Decoder, Files, Transform, read
from pnnh.data.types import Dataset, Split
from pnnh.train.processes import Alone
from pnnh.train.recipe import Recipe


def feed_of(data: Dataset, recipe: Recipe, seed: int, device: torch.device, processes: Alone) -> Feed | DiskFeed:
    """The training batches that `recipe` asks for. Raises UsageError if its augmentation is for other data."""
    choices = {"batch_size": recipe.batch_size, "seed": seed, "device": device, "processes": processes}
    train, augment = data.train, recipe.augment
    if isinstance(train, Split) and isinstance(augment, Augment):
        return Feed(train.images, train.labels, augment, **choices)
    if isinstance(train, Files) and isinstance(augment, ResizedCrop):
        return DiskFeed(train, augment.transform(data.image_size), **choices)
    if isinstance(train, Split):
        raise UsageError(f"{data.name} is in memory and takes Augment, not {type(augment).__name__}")
    raise UsageError(f"{data.name} is augmented by ResizedCrop, not by {type(augment).__name__}")


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


class DiskFeed:
    """Training images decoded from disk and augmented by worker processes; of each batch a process reads its share."""

    def __init__(
        self, files: Files, transform: Transform, *, batch_size: int, seed: int, device: torch.device, processes: Alone
    ) -> None:
        self.files, self.batch_size, self.seed, self.device = files, batch_size, seed, device
        self.part, self.steps_per_epoch = processes.share(batch_size), len(files) // batch_size
        self.decoder = Decoder(files, transform, seed)
        self._next, self._batches = -1, iter(())

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """uint8 images [n, 3, S, S] and labels [n] of update number `step`, on the device."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if step != self._next or place == 0:
            self._batches = read(self.decoder, self._keys(epoch)[place:])
        pixels, labels, good, index = next(self._batches)
        self._next = step + 1
        if not good.all():
            self.files.report(index[~good])
            stand_in = int(good.int().argmax())  # a decoded image of the batch takes the place of a broken one
            pixels[~good], labels[~good] = pixels[stand_in].clone(), labels[stand_in].clone()
        return pixels.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _keys(self, epoch: int) -> list[list[tuple[int, int]]]:
        order = torch.randperm(len(self.files), generator=numbered(self.seed, "order", epoch, "cpu")).tolist()
        starts = range(0, self.steps_per_epoch * self.batch_size, self.batch_size)
        return [[(epoch, index) for index in order[start : start + self.batch_size][self.part]] for start in starts]


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the training images take at most half of the device's free memory."""
    return device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] / 2
