"""One training run as an object: what a step does, and everything that must be saved to go on from it."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from pnnh._errors import RunError, UsageError
from pnnh.data import Dataset
from pnnh.train.evaluate import Normalise, autocast
from pnnh.train.execution import Execution, norm_statistics, spread, whole
from pnnh.train.feed import feed_of, numbered
from pnnh.train.finite import NotFinite, Watch, locate
from pnnh.train.groups import param_groups
from pnnh.train.processes import Alone
from pnnh.train.recipe import Recipe


class Run:
    """A model, its optimiser and its place in the data. `step` counts updates done, of `steps` in all.

    A module with a method `penalty()` adds that number to what is minimised, not to the loss that is reported.
    Everything random follows from the seed: the order of the images from (seed, epoch), crops and mirrors from
    (seed, step); the model's own draws (dropout) from torch's generators, which are part of the state, one a process.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        *,
        execution: Execution | None = None,
        processes: Alone | None = None,
    ) -> None:
        self.execution, self.processes = execution or Execution(), processes or Alone()
        self.steps_per_epoch = len(data.train) // recipe.batch_size
        if not self.steps_per_epoch:
            limit = f"{len(data.train)} training images"
            raise UsageError(f"batch size {recipe.batch_size} is more than the {limit}; take a smaller batch")
        self.execution.check(recipe.batch_size, self.processes.size)
        self.steps, self.step = recipe.epochs * self.steps_per_epoch, 0
        self.data, self.recipe, self.seed, self.device = data, recipe, seed, device
        self._layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(device=device, memory_format=self._layout)
        self.execution.prepare(model)
        self.processes.same_(model.state_dict().values())
        self.ema = _average(model, recipe.ema_decay) if recipe.ema_decay else None
        self.wrapped = self._wrap()
        self.normalise = Normalise(data, device)
        groups = param_groups(model, recipe.weight_decay, decay_norms=recipe.decay_norms)
        self.optimizer = recipe.optimizer.build(groups)
        self.schedule = recipe.schedule.build(self.optimizer, steps=self.steps, steps_per_epoch=self.steps_per_epoch)
        self.watch = Watch(device)
        self.charging = [module for module in model.modules() if hasattr(module, "penalty")]
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)  # of this epoch and process so far
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.feed = feed_of(data, recipe, seed, device, self.processes)
        self._seed_model()

    def _wrap(self) -> nn.Module:
        """The model as it is trained; `self.model` stays the one to look at."""
        if self.processes.size == 1:
            return self.model
        side = self.data.image_size
        example = torch.zeros(2, self.data.channels, side, side, device=self.device)
        wrapped = self.execution.parallel.wrap(self.model, example)
        if self.ema is not None and wrapped is self.model:  # spread over the processes: so is its average
            self.execution.parallel.wrap(self.ema.module, example)
            self.ema.foreach = False  # its fused update takes no mixture of spread weights and whole buffers
        return wrapped

    def _seed_model(self) -> None:
        """torch's generators, which dropout draws from: those of the first process are `seed`'s."""
        torch.manual_seed(self.seed)
        if self.processes.rank:
            torch.manual_seed(numbered(self.seed, "process", self.processes.rank, "cpu").initial_seed())

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
        """This process's share of the next step: augmented images, float [n, C, H, W], and labels [n]."""
        images, labels = self.feed.batch(self.step)
        return self.normalise(images).contiguous(memory_format=self._layout), labels

    def mixed_batch(self) -> tuple[Tensor, Tensor]:
        """The batch as it is learned from: where the recipe mixes images, with shares of the classes [n, K]."""
        images, labels = self.batch()
        if self.recipe.mixing is None:
            return images, labels
        chance = numbered(self.seed, "mixing", self.step, "cpu")
        return self.recipe.mixing.draw(images, labels, self.data.num_classes, chance)

    def advance(self) -> None:
        """One update. Raises NotFinite, before the weights change where the device answers at once (a CPU)."""
        if self.step % self.steps_per_epoch == 0:
            self.loss_sum.zero_(), self.correct.zero_()
        images, labels = self.mixed_batch()
        self.schedule.step_update(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        passes = list(zip(*(part.chunk(self.execution.accumulate) for part in (images, labels)), strict=True))
        bad = False
        for number, (some, theirs) in enumerate(passes, start=1):
            alone = self.processes.size == 1
            with self.execution.exchange(self.wrapped, last=alone or number == len(passes)):
                bad |= self._learn_from(some, theirs, len(passes))
        if self.processes.any(bad):
            self.refuse(images)
        if self.recipe.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        self.processes.average_(norm_statistics(self.model))
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.step)

    def _learn_from(self, images: Tensor, labels: Tensor, passes: int) -> bool:
        """Forward and backward of one pass of `passes`; whether its loss is broken."""
        with autocast(self.device, self.recipe.amp):
            logits = self.wrapped(images)
        loss = self.recipe.loss(logits.float(), labels, self.recipe.label_smoothing) / passes
        sum((module.penalty() / passes for module in self.charging), loss).backward()
        self.loss_sum += loss.detach() / self.processes.size
        known = labels if labels.ndim == 1 else labels.argmax(1)
        self.correct += (logits.detach().argmax(1) == known).sum()
        return self.watch.is_bad(loss)

    def sums(self) -> tuple[float, int]:
        """Of this epoch so far, over all processes: the sum of the steps' losses, and the images got right."""
        return self.processes.sum(self.loss_sum).item(), int(self.processes.sum(self.correct).item())

    def refuse(self, images: Tensor | None = None) -> None:
        """Raise NotFinite in all processes, naming the layer."""
        with autocast(self.device, self.recipe.amp):
            where = locate(self.model, self.batch()[0] if images is None else images)
        where = next((found for found in self.processes.gather(where) if found), None)
        where = where or "every layer's output is finite again; the loss was not"
        hint = "lower the learning rate or set grad_clip"
        raise NotFinite(f"the loss is not finite at step {self.step} of {self.steps}, {where}; {hint}")

    def state(self) -> dict[str, Tensor]:
        """Every tensor needed to go on bitwise, by name. Raises NotFinite rather than give a broken state."""
        if self.processes.any(self.watch.was_bad()):
            self.refuse()
        tensors = {f"model.{name}": whole(value) for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": whole(value) for name, value in self.ema.module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            slots = {key: torch.as_tensor(value) for key, value in slots.items() if value is not None}
            tensors |= {f"optimizer.{index}.{key}": whole(value) for key, value in slots.items()}
        for index, group in enumerate(self.optimizer.param_groups):
            tensors |= {f"groups.{index}.step": torch.as_tensor(group["step"])} if "step" in group else {}  # LAMB's
        for rank, own in enumerate(self.processes.gather(self._own_state())):
            tensors |= {f"{name}.{rank}" if rank else name: value for name, value in own.items()}
        return tensors

    def _own_state(self) -> dict[str, Tensor]:
        """What differs from process to process."""
        own = {"sums.loss": self.loss_sum.cpu(), "sums.correct": self.correct.cpu(), "rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            own["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        return copy.deepcopy(own)

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from `state()` taken after `step` updates, by any number of processes."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            parts.setdefault(kind, {})[rest] = value
        try:
            _load(self.model, parts["model"])
            if self.ema is not None:
                _load(self.ema.module, parts["ema"])
            self._restore_optimizer(parts.get("optimizer", {}), parts.get("groups", {}))
            self._restore_own(parts["sums"], parts["rng"])
        except (KeyError, RuntimeError) as error:
            raise RunError(f"the saved state does not fit this run: {str(error).splitlines()[0]}") from None
        self.step = step

    def _restore_own(self, sums: dict[str, Tensor], rng: dict[str, Tensor]) -> None:
        """Sums of processes there are no longer go to the first; a process without a state draws from its seed."""
        rank, size = self.processes.rank, self.processes.size
        for name, total in (("loss", self.loss_sum), ("correct", self.correct)):
            known = {int(key.partition(".")[2] or 0): value for key, value in sums.items() if key.startswith(name)}
            mine = [value for owner, value in known.items() if (owner if owner < size else 0) == rank]
            total.copy_(sum(mine, torch.zeros_like(total.cpu())))
        suffix = f".{rank}" if rank else ""
        if f"cpu{suffix}" in rng:
            torch.set_rng_state(rng[f"cpu{suffix}"])
        if self.device.type == "cuda" and f"cuda{suffix}" in rng:
            torch.cuda.set_rng_state(rng[f"cuda{suffix}"], self.device)

    def _restore_optimizer(self, slots: dict[str, Tensor], counts: dict[str, Tensor]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor | int]] = {}
        for name, value in slots.items():
            index, _, key = name.partition(".")
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:
                like = torch.empty_like(parameter)  # in the parameter's own memory format and spread
                value = like.copy_(spread(value, parameter))
            state.setdefault(int(index), {})[key] = _as_it_was(value)
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for name, value in counts.items():
            self.optimizer.param_groups[int(name.partition(".")[0])]["step"] = _as_it_was(value)


def _load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = model.state_dict()
    model.load_state_dict({name: spread(value, own[name]) for name, value in tensors.items()})


def _as_it_was(value: Tensor) -> Tensor | int:
    """A flag or a count of an optimiser that was no tensor when it was saved; else a tensor of its own."""
    return value.item() if value.ndim == 0 and not value.is_floating_point() else value.clone()


def _average(model: nn.Module, decay: float):
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=decay, use_warmup=True)
