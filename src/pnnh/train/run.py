"""One training run: the model, its optimiser, its place in the data, and what one step does."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from pnnh._errors import UsageError
from pnnh.data.augment import numbered
from pnnh.data.disk import drawing_from
from pnnh.data.types import Dataset, stratified
from pnnh.train import norms
from pnnh.train.evaluate import Evaluation, Normalise, autocast, evaluate
from pnnh.train.execution import Execution, has_fast_bf16
from pnnh.train.feed import feed_of
from pnnh.train.finite import NotFinite, Watch, broken_weight, locate
from pnnh.train.groups import param_groups
from pnnh.train.processes import Alone
from pnnh.train.recipe import Recipe

SHORT_RUN = 1000  # steps below which batch norms are recomputed before evaluations
NORM_IMAGES = 1024  # at most, for recomputing batch norms


class Run:
    """A model in training. `step` counts the updates done, `steps` those of the whole run.

    A module with a method `penalty()` adds that number to what is minimised, not to the loss that is reported.
    Everything random is a function of the seed and the step: the order of the images of (seed, epoch); crops, mixing
    and the model's own draws (dropout) of (seed, step), the latter also of the process.
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
        self.data, self.recipe, self.seed, self.device = data, recipe, seed, device
        self._check()
        self.steps_per_epoch = len(data.train) // recipe.batch_size
        self.steps, self.step = recipe.epochs * self.steps_per_epoch, 0
        self.printed = printed(model)  # before it is changed for training
        self._layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(device=device, memory_format=self._layout)
        self.execution.prepare(model)
        self.processes.same_(model.state_dict().values())
        self.ema = _average(model, recipe.ema_decay) if recipe.ema_decay else None
        self._norms = norms.batch_norms(model)
        groups = param_groups(model, recipe.weight_decay, decay_norms=recipe.decay_norms)
        self.optimizer = recipe.optimizer.build(groups)
        wrapped = self.processes.wrap(model)
        self.wrapped = torch.compile(wrapped) if self.execution.compile else wrapped
        self.loss = recipe.loss.build(0.0 if recipe.mixing else recipe.label_smoothing)
        self.penalties = [module for module in model.modules() if hasattr(module, "penalty")]
        self.normalise, self.watch = Normalise(data, device), Watch(device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)  # of this epoch and process so far
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.feed = feed_of(data, recipe, seed, device, self.processes)

    def _check(self) -> None:
        """Raises UsageError for a seed or a batch size that cannot be used."""
        batch_size, images = self.recipe.batch_size, len(self.data.train)
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed {self.seed} must be at least 0 and below 2^63")
        if batch_size > images:
            raise UsageError(f"batch size {batch_size} is more than the {images} training images; take a smaller batch")
        self.execution.check(batch_size, self.processes.size, self.device)
        if self.recipe.mixing and batch_size // self.processes.size % 2:
            raise UsageError(f"batch size {batch_size} gives a process an odd number of images; mixing needs pairs")
        if self.recipe.amp == "bf16":
            has_fast_bf16(self.device.type)

    def batch(self) -> tuple[Tensor, Tensor]:
        """This process's share of the next step: augmented images, float [n, C, H, W], and labels [n]."""
        images, labels = self.feed.batch(self.step)
        return self.normalise(images).contiguous(memory_format=self._layout), labels

    def advance(self) -> None:
        """One update. Raises NotFinite, before the weights change where the device answers at once (a CPU)."""
        if self.step % self.steps_per_epoch == 0:
            self.loss_sum.zero_()
            self.correct.zero_()
        rate = self.recipe.schedule.share(self.step, self.steps, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.optimizer.lr * rate * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        with drawing_from(numbered(self.seed, f"draws {self.processes.rank}", self.step, "cpu").initial_seed()):
            self._learn_from(*self.batch())
        if self.recipe.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        self.processes.average_(norms.statistics(self._norms))
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.step)

    def _learn_from(self, images: Tensor, labels: Tensor) -> None:
        """Add up the gradients of the loss in `accumulate` passes. Raises NotFinite."""
        recipe, passes = self.recipe, self.execution.accumulate
        targets = labels
        if recipe.mixing is not None:
            images, targets = recipe.mixing.mix(images, labels, self.data.num_classes, recipe.label_smoothing)
        parts = zip(images.chunk(passes), targets.chunk(passes), strict=True)
        for number, (some, theirs) in enumerate(parts, start=1):
            with nullcontext() if number == passes else self.processes.no_exchange(self.wrapped):
                with autocast(self.device, recipe.amp):
                    logits = self.wrapped(some)
                loss = self.loss(logits.float(), theirs) / passes
                sum((module.penalty() / passes for module in self.penalties), loss).backward()
            self.loss_sum += loss.detach() / self.processes.size
            self.correct += (logits.detach().argmax(1) == (theirs if theirs.ndim == 1 else theirs.argmax(1))).sum()
            self.watch.look(loss)
        if self.processes.any(self.watch.is_bad()):
            self.refuse(images)

    def sums(self) -> tuple[float, int]:
        """Of this epoch so far, over all processes: the sum of the steps' losses, and the images answered right."""
        return self.processes.sum(self.loss_sum).item(), int(self.processes.sum(self.correct).item())

    @property
    def lr(self) -> float:
        """Learning rate of the last update, before any group's own scale."""
        last = max(self.step - 1, 0)
        return self.recipe.optimizer.lr * self.recipe.schedule.share(last, self.steps, self.steps_per_epoch)

    @property
    def averaged(self) -> nn.Module:
        """The model to evaluate and keep: the moving average if the recipe has one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def recomputes_norms(self) -> bool:
        """Whether batch norms are recomputed before evaluations (`Recipe.recompute_norms`) and the model has some."""
        choice = self.recipe.recompute_norms
        return bool(self._norms) and (self.steps < SHORT_RUN if choice is None else choice)

    def evaluate(self, between=lambda: None) -> Evaluation:
        """The model to keep on the test images; training goes on from the statistics of batch norms as they were."""
        with norms.kept(self.averaged):
            self._recompute_norms(self.averaged)
            choices = {"device": self.device, "amp": self.recipe.amp, "processes": self.processes}
            return evaluate(self.averaged, self.data, between=between, **choices)

    def finish(self) -> None:
        """Put the weights and statistics to keep into the model, in eval mode."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        self._recompute_norms(self.model)
        self.model.eval()

    def _recompute_norms(self, model: nn.Module) -> None:
        """The same result whenever it is called with the same weights."""
        if not self.recomputes_norms:
            return
        size, images = self.processes.size, min(NORM_IMAGES, len(self.data.train))
        each = max(2, min(self.recipe.batch_size, images) // size)  # images of a process that pass the model together
        count = images - images % (each * size)
        chosen, _ = stratified(self.data.train.labels, count, self.seed)
        parts = self.data.train.take(chosen).batches(each, self.processes.rank, size)
        with autocast(self.device, self.recipe.amp):
            batches = (self.normalise(part.to(self.device)).contiguous(memory_format=self._layout) for part, _ in parts)
            norms.recompute(model, batches)
        self.processes.average_(norms.statistics(norms.batch_norms(model)))

    def check_finite(self) -> None:
        """Raise NotFinite, in all processes, if a loss or a weight was NaN or infinite; waits for the device."""
        if self.processes.any(self.watch.was_bad()):
            self.refuse()
        if weight := broken_weight(self.averaged) or broken_weight(self.model):
            done = f"after update {self.step} of {self.steps}"
            raise NotFinite(f"{weight} is not finite {done}; lower the learning rate or set grad_clip")

    def refuse(self, images: Tensor | None = None) -> None:
        """Raise NotFinite in all processes, naming the layer."""
        with autocast(self.device, self.recipe.amp):
            where = locate(self.model, self.batch()[0] if images is None else images)
        where = next((place for place in self.processes.gather(where) if place), None)
        where = where or "every layer's output is finite again; the loss was not"
        hint = "lower the learning rate or set grad_clip"
        raise NotFinite(f"the loss is not finite at step {self.step} of {self.steps}, {where}; {hint}")


def printed(model: nn.Module) -> str:
    """The model as it prints itself, and the numbers and strings that modules of a user's own hold besides.

    Two models with the same text and the same shapes are taken for the same network.
    """
    lines = [str(model)]
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch."):  # torch's modules print their settings
            continue
        values = {k: v for k, v in vars(module).items() if k[0] != "_" and isinstance(v, (int, float, str))}
        values.pop("training", None)
        lines.append(f"{path or 'the model'}: {type(module).__name__} {values}")
    return "\n".join(lines)


def _average(model: nn.Module, decay: float):
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=decay, use_warmup=True)
