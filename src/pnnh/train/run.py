"""One training run as an object: what a step does, and everything that must be saved to go on from it."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnnh._errors import RunError, UsageError
from pnnh.train.data import Dataset
from pnnh.train.evaluate import Normalise, autocast
from pnnh.train.finite import NotFinite, Watch, locate
from pnnh.train.groups import param_groups
from pnnh.train.recipe import Recipe


class Run:
    """A model, its optimiser and its place in the data. `step` counts updates done, of `steps` in all.

    Everything random follows from the seed: the order of the images from (seed, epoch), crops and mirrors from
    (seed, step); the model's own draws (dropout) from torch's generators, which are part of the state.
    """

    def __init__(self, model: nn.Module, data: Dataset, recipe: Recipe, seed: int, device: torch.device) -> None:
        self.steps_per_epoch = len(data.train) // recipe.batch_size
        if not self.steps_per_epoch:
            limit = f"{len(data.train)} training images"
            raise UsageError(f"batch size {recipe.batch_size} is more than the {limit}; take a smaller batch")
        self.steps, self.step = recipe.epochs * self.steps_per_epoch, 0
        self.data, self.recipe, self.seed, self.device = data, recipe, seed, device
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(device=device, memory_format=layout)
        self.normalise = Normalise(data, device)
        self.optimizer = recipe.optimizer.build(param_groups(model, recipe.weight_decay))
        self.schedule = recipe.schedule.build(self.optimizer, steps=self.steps, steps_per_epoch=self.steps_per_epoch)
        self.ema = _average(model, recipe.ema_decay) if recipe.ema_decay else None
        self.watch = Watch(device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)  # of this epoch so far
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self._images, self._labels = data.train.images, data.train.labels.to(device)
        if device.type != "cpu" and _fits(self._images, device):
            self._images = self._images.to(device)
        self._order = None
        torch.manual_seed(seed)

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch

    @property
    def averaged(self) -> nn.Module:
        """The model to evaluate and keep: the moving average if the recipe has one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def lr(self) -> float:
        """Learning rate of the last update, before any group's own scale."""
        return max(group["lr"] / (group["lr_scale"] or math.inf) for group in self.optimizer.param_groups)

    def batch(self) -> tuple[Tensor, Tensor]:
        """The next step's augmented images, float [N, C, H, W], and labels [N]: a function of (seed, step)."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self._order is None or place == 0:
            count, generator = len(self.data.train), _generator(self.seed, "order", epoch, "cpu")
            self._order = torch.randperm(count, generator=generator)
        index = self._order[place * self.recipe.batch_size : (place + 1) * self.recipe.batch_size]
        generator = _generator(self.seed, "augment", self.step, self.device)
        images, inside = self._images, index.to(self.device, non_blocking=True)
        if images.device != self.device:  # too large to live on the device: the batch travels
            images, inside_batch = images[index].to(self.device), torch.arange(len(index), device=self.device)
        else:
            inside_batch = inside
        images = self.recipe.augment.draw(images, inside_batch, generator)
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return self.normalise(images).contiguous(memory_format=layout), self._labels[inside]

    def advance(self) -> None:
        """One update. Raises NotFinite, before the weights change where the device answers at once (a CPU)."""
        if self.step % self.steps_per_epoch == 0:
            self.loss_sum.zero_(), self.correct.zero_()
        images, labels = self.batch()
        self.schedule.step_update(self.step)
        with autocast(self.device, self.recipe.amp):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        if self.watch.is_bad(loss):
            self.refuse(images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.step)
        self.loss_sum += loss.detach()
        self.correct += (logits.detach().argmax(1) == labels).sum()

    def refuse(self, images: Tensor | None = None) -> None:
        """Raise NotFinite, naming the layer."""
        with autocast(self.device, self.recipe.amp):
            where = locate(self.model, self.batch()[0] if images is None else images)
        hint = "lower the learning rate or set grad_clip"
        raise NotFinite(f"the loss is not finite at step {self.step} of {self.steps}, {where}; {hint}")

    def state(self) -> dict[str, Tensor]:
        """Every tensor needed to go on bitwise, by name. Raises NotFinite rather than give a broken state."""
        if self.watch.was_bad():
            self.refuse()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in slots.items() if value is not None}
        tensors |= {"sums.loss": self.loss_sum, "sums.correct": self.correct, "rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        return tensors

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from `state()` taken after `step` updates."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            parts.setdefault(kind, {})[rest] = value
        try:
            self.model.load_state_dict(parts["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(parts["ema"])
            self._restore_optimizer(parts.get("optimizer", {}))
            self.loss_sum.copy_(parts["sums"]["loss"])
            self.correct.copy_(parts["sums"]["correct"])
            torch.set_rng_state(parts["rng"]["cpu"])
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the saved state does not fit this run: {str(error).splitlines()[0]}") from None
        if self.device.type == "cuda" and "cuda" in parts["rng"]:
            torch.cuda.set_rng_state(parts["rng"]["cuda"], self.device)
        self.step, self._order = step, None

    def _restore_optimizer(self, slots: dict[str, Tensor]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in slots.items():
            index, _, key = name.partition(".")
            parameter = parameters[int(index)]
            like = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
            state.setdefault(int(index), {})[key] = like.copy_(value)  # in the parameter's own memory format
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def _generator(seed: int, purpose: str, count: int, device: torch.device | str) -> torch.Generator:
    """Independent random numbers for one purpose at one time of one run."""
    digest = hashlib.sha256(f"{seed} {purpose} {count}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "big"))


def _average(model: nn.Module, decay: float):
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=decay, use_warmup=True)


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the training images take at most half of the device's free memory."""
    return device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] / 2
