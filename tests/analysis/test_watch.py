"""`pnnh.watch` in training loops: its numbers against autograd, what it writes, and that it leaves no trace."""

import copy
import csv
import json
import math

import pytest
import torch
from torch import nn

import pnnh
from pnnh._errors import UsageError


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5), nn.GELU(),
        nn.Linear(5, 3),
    )  # fmt: skip


IMAGES, LABELS = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3


def loop(model, steps=5):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
        with torch.no_grad():  # an evaluation in between is no training pass
            model.eval()(IMAGES)
        model.train()


def test_the_numbers_are_those_of_the_activations_and_of_autograd():
    model, twin = net(), net()
    with torch.no_grad():
        for one in (model, twin):
            one[1].bias[2] = -9.0  # a unit that is positive nowhere
    with pnnh.watch(model, every=1) as seen:
        loop(model, steps=1)
    first, second = seen.rows()
    a = twin[:3](IMAGES)
    b = twin[3:6](a)
    a.retain_grad(), b.retain_grad()
    nn.functional.cross_entropy(twin[6](b), LABELS).backward()
    assert (first["step"], first["depth"], first["layer"], first["op"]) == (0, 1, "2", "relu")
    assert (second["depth"], second["layer"], second["op"]) == (2, "5", "gelu")
    assert first["survival"] == pytest.approx((a > 0).double().mean().item())
    assert first["dead"] == pytest.approx(1 / 6)
    assert second["survival"] == pytest.approx((b > 0).double().mean().item())
    assert second["dead"] == pytest.approx(1 - (b > 0).any(0).double().mean().item())
    assert first["gradient"] == pytest.approx(a.grad.norm().item(), rel=1e-5)
    assert second["gradient"] == pytest.approx(b.grad.norm().item(), rel=1e-5)


def test_every_nth_training_pass_is_watched_and_training_is_the_same():
    watched, alone = net(), net()
    loop(alone)
    before = dict(watched.__dict__)
    with pnnh.watch(watched, every=2) as seen:
        loop(watched)
    assert [row["step"] for row in seen.rows()] == [0, 0, 2, 2, 4, 4]
    assert all(torch.equal(value, watched.state_dict()[name]) for name, value in alone.state_dict().items())
    assert not watched._forward_hooks
    assert not watched._forward_pre_hooks
    assert watched.__dict__.keys() == before.keys()
    loop(watched)
    assert len(seen.rows()) == 6


def test_files_and_logger(tmp_path):
    logged = []
    options = {"every": 3, "log": lambda values, step: logged.append((step, values))}
    with pnnh.watch(net(), out=tmp_path / "a" / "w.csv", **options) as seen:
        loop(seen._model)
    table = list(csv.DictReader((tmp_path / "a" / "w.csv").read_text().splitlines()))
    assert [(int(row["step"]), row["layer"]) for row in table] == [(0, "2"), (0, "5"), (3, "2"), (3, "5")]
    assert [float(row["gradient"]) for row in table] == [row["gradient"] for row in seen.rows()]
    assert [step for step, _ in logged] == [0, 3]
    assert logged[0][1]["survival/2"] == seen.rows()[0]["survival"]
    assert logged[0][1].keys() == {f"{name}/{layer}" for name in ("survival", "dead", "gradient") for layer in "25"}
    with pnnh.watch(net(), out=tmp_path / "w.jsonl", every=3) as seen:
        seen._model(IMAGES)  # without a backward pass: no gradient
    lines = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()]
    assert [line["gradient"] for line in lines] == [None, None]
    assert math.isnan(seen.rows()[0]["gradient"])


def test_a_copy_of_the_model_is_not_watched_and_a_pass_that_raises_leaves_no_mode():
    model = net()
    with pnnh.watch(model, every=1) as seen:
        copied = copy.deepcopy(model)
        loop(copied)
        assert seen.rows() == []
        with pytest.raises(RuntimeError):
            model(IMAGES[:, :, :3])
        assert torch.overrides._len_torch_function_stack() == 0
        assert len(seen.rows()) == 1  # the activation before the error
        loop(model, steps=1)
        assert [row["step"] for row in seen.rows()] == [0, 1, 1]


def test_it_watches_the_training_loop_of_this_package():
    from pnnh.train import Recipe, load_data, train

    data = load_data("digits", image_size=8, limit=40)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    with pnnh.watch(model, every=2) as seen:
        list(train(model, data, Recipe(2, 20, ema_decay=0.5), device="cpu"))
    assert [row["step"] for row in seen.rows()] == [0, 2]
    assert all(row["gradient"] > 0 for row in seen.rows())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every 0 must be at least 1"), ({"out": "w.txt"}, r"out 'w.txt' must end in .csv or .jsonl")],
)
def test_requests_that_cannot_be_meant(options, message):
    model = net()
    with pytest.raises(UsageError, match=message):
        pnnh.watch(model, **options)
    assert not model._forward_hooks
