"""Augmentation, optimiser groups, recipes and schedules: each against an independent computation."""

import json
import math

import pytest
import torch
from torch import nn

from pnnh._errors import UsageError
from pnnh.compare import recipe_for
from pnnh.data.augment import shift
from pnnh.train import (
    SGD,
    AdamW,
    Augment,
    BinaryCrossEntropy,
    Cosine,
    Linear,
    Mixing,
    Muon,
    OneCycle,
    Recipe,
    load_data,
    param_groups,
)
from pnnh.train.run import Run


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shift_is_pad_mirror_crop():
    images = torch.randint(1, 256, (5, 3, 6, 8), generator=seeded()).to(torch.uint8)
    index = torch.tensor([4, 0, 3, 4])
    dy, dx = torch.tensor([[2], [-2], [0], [1]]), torch.tensor([[-1], [2], [0], [-2]])
    mirrored = torch.tensor([[True], [False], [True], [False]])
    ours = shift(images, index, dy, dx, mirrored)
    for i, source in enumerate(index):
        image = images[source].flip(-1) if mirrored[i] else images[source]
        padded = nn.functional.pad(image, (2, 2, 2, 2))
        top, left = 2 + int(dy[i]), 2 + int(dx[i])
        assert torch.equal(ours[i], padded[:, top : top + 6, left : left + 8])
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_no_augmentation_is_the_batch_itself():
    images = torch.randint(0, 256, (5, 1, 8, 8), generator=seeded()).to(torch.uint8)
    index = torch.tensor([3, 1])
    assert torch.equal(Augment(pad=0, flip=False).draw(images, index, seeded()), images[index])


def test_draws_cover_every_shift_and_mirror_and_follow_the_generator():
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[0, 0, 3, 2] = 1  # mirrored, it lies in column 5
    index = torch.zeros(400, dtype=torch.int64)
    batch = Augment(pad=1, flip=True).draw(images, index, seeded())
    places = {tuple(place) for place in batch.nonzero()[:, 2:].tolist()}
    assert places == {(y, x) for y in (2, 3, 4) for x in (1, 2, 3, 4, 5, 6)}
    assert torch.equal(batch, Augment(pad=1, flip=True).draw(images, index, seeded()))
    assert not torch.equal(batch, Augment(pad=1, flip=True).draw(images, index, seeded(1)))


class Shared(nn.Module):
    """A kernel with its own rate, used by two layers that own their other weights."""

    lr_scale = 0.1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.inner = nn.Linear(3, 3)


def test_each_parameter_is_in_exactly_one_group():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 3), Shared(), nn.Linear(3, 3))
    model[4].weight = model[2].weight  # tied
    groups = {group["name"]: group for group in param_groups(model, 0.05)}
    members = {name: {id(p) for p in group["params"]} for name, group in groups.items()}
    assert members["scaled"] == {id(model[3].weight)}
    assert members["decay"] == {id(m.weight) for m in (model[0], model[2], model[3].inner)}
    assert members["no_decay"] == {
        id(p)
        for p in (model[0].bias, model[1].weight, model[1].bias, model[2].bias, model[3].inner.bias, model[4].bias)
    }
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))
    assert {name: (g["lr_scale"], g["weight_decay"]) for name, g in groups.items()} == {
        "scaled": (0.1, 0.0), "decay": (1.0, 0.05), "no_decay": (1.0, 0.0)
    }  # fmt: skip


def test_norms_decay_where_asked_and_the_coder_never():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), Shared())
    groups = {group["name"]: group for group in param_groups(model, 0.05, decay_norms=True)}
    assert [id(p) for p in groups["scaled"]["params"]] == [id(model[2].weight)]
    assert len(groups["decay"]["params"]) == len(list(model.parameters())) - 1


def test_two_owners_with_different_rules_are_an_error():
    model = nn.ModuleDict({"coder": Shared(), "layer": nn.Linear(3, 3)})
    model["layer"].weight = model["coder"].weight
    with pytest.raises(UsageError, match=r"two rules for one parameter: coder.weight .*layer.weight"):
        param_groups(model, 0.1)


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_an_error():
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    assert [group["name"] for group in param_groups(model, 0.1)] == ["decay"]
    with pytest.raises(UsageError, match="no trainable parameter"):
        param_groups(model.requires_grad_(False), 0.1)


def rates(schedule, steps=100):
    """Share of the peak rate of every step."""
    return [schedule.share(step, steps, steps_per_epoch=10) for step in range(steps)]


def test_one_cycle_rises_in_a_line_and_falls_as_a_cosine():
    rise = [0.04 + 0.96 * step / 30 for step in range(30)]
    fall = [0.5 * (1 + math.cos(math.pi * step / 70)) for step in range(70)]
    assert rates(OneCycle(warmup=0.3, start=0.04)) == pytest.approx(rise + fall)


def test_cosine_and_linear_with_and_without_warm_up():
    assert rates(Cosine())[:2] == pytest.approx([1, 0.5 * (1 + math.cos(math.pi / 100))])
    assert rates(Linear()) == pytest.approx([1 - step / 100 for step in range(100)])
    for schedule in (Cosine(2), Linear(2)):
        assert rates(schedule)[:21] == pytest.approx([0.05 * step for step in range(21)])
    assert rates(Linear(2))[20:] == pytest.approx([1 - step / 80 for step in range(80)])
    for schedule in (OneCycle(), Cosine(), Linear(), Cosine(50), OneCycle(warmup=1.0)):
        assert rates(schedule, steps=1) == [1]
        assert all(0 <= rate <= 1 for rate in rates(schedule, steps=7))


@pytest.mark.parametrize("optimizer", [SGD(lr=0.5), AdamW(lr=0.5), Muon(lr=0.5)])
def test_the_loop_sets_the_rate_of_every_group(optimizer):
    data = load_data("digits", image_size=8, limit=100)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), Shared(), nn.Linear(3, 10))
    model[2].forward = lambda x: x @ model[2].weight
    run = Run(model, data, Recipe(1, 25, optimizer, Linear()), 0, torch.device("cpu"))
    assert run.optimizer.param_groups[0]["lr"] == 0.5
    for rate in (0.5, 0.375, 0.25, 0.125):
        run.advance()
        groups = {group["name"]: group["lr"] for group in run.optimizer.param_groups}
        assert groups == pytest.approx({"decay": rate, "no_decay": rate, "scaled": 0.1 * rate})
        assert run.lr == pytest.approx(rate)


def test_recipes_survive_json():
    recipe = Recipe(epochs=3, optimizer=AdamW(lr=2e-3), schedule=Linear(1.5), augment=Augment(2, False), amp="bf16")
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    mixed = Recipe(mixing=Mixing(0, 1.0), loss=BinaryCrossEntropy(0.3), schedule=Cosine(2), recompute_norms=False)
    for recipe in (Recipe(), mixed):
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    with pytest.raises(UsageError, match="unknown entries banana"):
        Recipe.from_dict(Recipe().to_dict() | {"banana": 1})
    with pytest.raises(UsageError, match="'Adagrad' is unknown"):
        Recipe.from_dict(Recipe().to_dict() | {"optimizer": {"type": "Adagrad"}})
    assert Recipe(optimizer=AdamW()).with_lr(0.3).optimizer == AdamW(lr=0.3)
    with pytest.raises(UsageError, match="lr nan"):
        Recipe().with_lr(math.nan)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"epochs": 0}, "epochs 0 must be at least 1"),
        ({"batch_size": 1}, "batch_size 1 must be at least 2"),
        ({"epochs": 2.5}, "epochs 2.5 must be at least 1"),
        ({"amp": "fp16"}, "amp 'fp16' must be"),
        ({"label_smoothing": 1.0}, r"label_smoothing 1.0 must be in"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"grad_clip": -1.0}, "grad_clip"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": math.nan}, "weight_decay nan must be a finite number"),
        ({"grad_clip": math.inf}, "grad_clip inf must be a finite number"),
        ({"label_smoothing": math.nan}, "label_smoothing nan"),
    ],
)
def test_impossible_recipes_are_refused(choice, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**choice)


@pytest.mark.parametrize(
    ("kind", "choice", "message"),
    [
        (SGD, {"lr": 0}, "lr 0 must be above 0"),
        (SGD, {"lr": -0.1}, "lr -0.1 must be above 0"),
        (SGD, {"lr": math.nan}, "lr nan must be a finite number"),
        (AdamW, {"lr": math.inf}, "lr inf must be a finite number"),
        (SGD, {"momentum": 1.0}, r"momentum 1.0 must be in \[0, 1\)"),
        (AdamW, {"beta2": math.nan}, "beta2 nan must be a finite number"),
        (AdamW, {"beta1": -0.5}, r"beta1 -0.5 must be in \[0, 1\)"),
        (Muon, {"momentum": 2.0}, "momentum 2.0"),
        (OneCycle, {"warmup": 1.5}, r"warmup 1.5 must be in \[0, 1\]"),
        (OneCycle, {"start": math.nan}, "start nan"),
        (Cosine, {"warmup_epochs": -1}, "warmup_epochs -1 must be 0 or more"),
        (Linear, {"warmup_epochs": math.inf}, "warmup_epochs inf"),
        (Mixing, {"mixup": math.nan}, "mixup nan"),
        (Mixing, {"mixup": 0.0, "cutmix": 0.0}, "one of them above 0"),
        (BinaryCrossEntropy, {"threshold": 1.0}, "threshold 1.0"),
    ],
)
def test_impossible_choices_are_refused(kind, choice, message):
    with pytest.raises(UsageError, match=message):
        kind(**choice)


def test_the_default_recipe_fits_the_data():
    digits = load_data("digits")
    assert recipe_for(digits).augment == Augment(pad=2, flip=False)
    assert recipe_for(digits).batch_size == 64
    assert recipe_for(digits, batch_size=32, epochs=7) == Recipe(7, 32, augment=Augment(2, False))


@pytest.mark.parametrize(("images", "batch_size"), [(10, 10), (240, 16), (600, 32), (1100, 64)])
def test_small_sets_keep_enough_steps(images, batch_size):
    data = load_data("digits", limit=images)
    assert recipe_for(data).batch_size == batch_size
