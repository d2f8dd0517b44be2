"""The batches of a run: each is a function of the seed and the step, whatever came before."""

from __future__ import annotations

import torch
from torch import Tensor

from pnnh._errors import UsageError
from pnnh.data.augment import Augment, ResizedCrop, numbered
from pnnh.data.disk import Decoder, Files, read
from pnnh.data.types import Dataset, Images, Split
from pnnh.train.processes import Alone
from pnnh.train.recipe import Recipe


def feed_of(data: Dataset, recipe: Recipe, seed: int, device: torch.device, processes: Alone) -> Feed:
    """The training batches that `recipe` asks for. Raises UsageError if its augmentation is for other data."""
    if isinstance(data.train, Split) and isinstance(recipe.augment, Augment):
        return MemoryFeed(data.train, recipe, seed, device, processes)
    if isinstance(data.train, Files) and isinstance(recipe.augment, ResizedCrop):
        return DiskFeed(data.train, recipe, seed, device, processes)
    place, kind = ("in memory", "Augment") if isinstance(data.train, Split) else ("on disk", "ResizedCrop")
    raise UsageError(f"{data.name} is {place} and takes {kind}, not {type(recipe.augment).__name__}")


class Feed:
    """Training batches in another order in every epoch; of each batch a process gets its share."""

    def __init__(self, images: Images, recipe: Recipe, seed: int, device: torch.device, processes: Alone) -> None:
        self.images, self.augment, self.seed, self.device = images, recipe.augment, seed, device
        self.batch_size, self.part = recipe.batch_size, processes.share(recipe.batch_size)
        self.steps_per_epoch = len(images) // recipe.batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """uint8 images [n, C, S, S] and labels [n] of update number `step`, on the device."""
        raise NotImplementedError

    def order(self, epoch: int) -> Tensor:
        """The positions of the images of an epoch, [steps_per_epoch, batch_size]."""
        positions = torch.randperm(len(self.images), generator=numbered(self.seed, "order", epoch, "cpu"))
        return positions[: self.steps_per_epoch * self.batch_size].view(-1, self.batch_size)


class MemoryFeed(Feed):
    """Random crops and mirror images of images in memory, made on the device where they fit there."""

    def __init__(self, images: Split, recipe: Recipe, seed: int, device: torch.device, processes: Alone) -> None:
        super().__init__(images, recipe, seed, device, processes)
        self._pixels, self._labels = images.images, images.labels.to(device)
        if _fits(self._pixels, device):
            self._pixels = self._pixels.to(device)
        self._epoch, self._order = None, torch.empty(0)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            self._epoch, self._order = epoch, self.order(epoch)
        chosen = self._order[place].to(self.device, non_blocking=True)
        pixels, index = self._pixels, chosen
        if pixels.device != self.device:  # too many to live on the device: the batch travels
            pixels = pixels[self._order[place]].to(self.device)
            index = torch.arange(self.batch_size, device=self.device)
        generator = numbered(self.seed, "augment", step, self.device)
        return self.augment.draw(pixels, index, generator, self.part), self._labels[chosen[self.part]]


class DiskFeed(Feed):
    """Images decoded from disk and augmented by worker processes."""

    def __init__(self, images: Files, recipe: Recipe, seed: int, device: torch.device, processes: Alone) -> None:
        super().__init__(images, recipe, seed, device, processes)
        self._decoder = Decoder(images, recipe.augment.transform(images.image_size), seed)
        self._next, self._batches = -1, iter(())

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, self.steps_per_epoch)
        if step != self._next or place == 0:
            keys = [[(epoch, index) for index in batch[self.part]] for batch in self.order(epoch).tolist()]
            self._batches = read(self._decoder, keys[place:])
        pixels, labels, good, index = next(self._batches)
        self._next = step + 1
        if not good.all():
            self.images.report(index[~good])
            stand_in = int(good.int().argmax())  # a decoded image of the batch takes the place of a broken one
            pixels[~good], labels[~good] = pixels[stand_in].clone(), labels[stand_in].clone()
        return pixels.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the training images take at most half of the device's free memory."""
    return device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] / 2
