"""The loop: against a hand-written one, resumed bitwise, stopped politely, refusing early."""

import copy
import errno
import json
import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pnnh._errors import UsageError
from pnnh.train import (
    SGD,
    AdamW,
    Augment,
    Cosine,
    Lamb,
    Muon,
    NotFinite,
    Recipe,
    StopOnSignal,
    Stopped,
    check_fit,
    checkpoint,
    evaluate,
    load_data,
    pick_device,
    train,
)  # fmt: skip
from pnnh.train import run as run_module
from pnnh.train.run import Run
from pnnh.train.state import restore, state

PLAIN = Augment(pad=0, flip=False)
AS_TRAINED = {"recompute_norms": False}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", image_size=8, limit=200)


def net(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(),
        nn.Linear(96, 10),
    )  # fmt: skip


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_one_epoch_equals_a_hand_written_loop(digits):
    model, theirs = net(), net()
    recipe = Recipe(1, 50, SGD(lr=0.2), Cosine(), weight_decay=0.01, label_smoothing=0.1, augment=PLAIN, **AS_TRAINED)
    run = Run(copy.deepcopy(model), digits, recipe, 5, torch.device("cpu"))
    batches = []
    for step in range(4):
        run.step = step
        batches.append(run.batch())
    [event] = train(model, digits, recipe, seed=5, device="cpu")

    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    rest = [p for p in theirs.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9, nesterov=True)
    losses, correct = [], 0
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 + torch.cos(torch.tensor(torch.pi * step / 4)).item())
        logits = theirs(images)
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        correct += (logits.argmax(1) == labels).sum().item()
    for ours, expected in zip(model.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, expected)
    assert event.loss == pytest.approx(sum(losses) / 4)
    assert event.train_accuracy == pytest.approx(correct / 200)
    assert (event.epoch, event.step) == (1, 4)


def test_an_epoch_sees_every_image_once_in_another_order_each_time(digits):
    recipe = Recipe(2, 50, augment=PLAIN)
    run = Run(net(), digits, recipe, 0, torch.device("cpu"))
    seen = []
    for step in range(8):
        run.step = step
        seen.append(run.batch()[0])
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    expected = run.normalise(digits.train.images)
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert sorted(epoch.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())


def test_normalised_pixels_have_mean_0_and_deviation_1(digits):
    run = Run(net(), digits, Recipe(batch_size=50), 0, torch.device("cpu"))
    full = run.normalise(load_data("digits", image_size=8).train.images)
    assert full.mean().item() == pytest.approx(0, abs=1e-5)
    assert full.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_evaluation_counts_every_image_once(digits):
    model = net().train()
    seen = evaluate(model, digits, batch_size=100)  # 359 = 3 x 100 + 59
    model.eval()
    with torch.no_grad():
        mean, std = digits.mean[0], digits.std[0]
        logits = model((digits.test.images / 255 - mean) / std)
    assert seen.num_images == 359
    assert seen.accuracy == (logits.argmax(1) == digits.test.labels).double().mean().item()
    assert seen.loss == pytest.approx(nn.functional.cross_entropy(logits, digits.test.labels).item(), rel=1e-5)
    model.train()[1].eval()
    evaluate(model, digits)
    assert (model.training, model[1].training) == (True, False)


def test_training_learns_and_repeats_itself(digits):
    recipe = Recipe(6, 20, SGD(lr=0.05), augment=PLAIN)
    one, two, other = net(), net(), net()
    events = list(train(one, digits, recipe, seed=1, device="cpu"))
    assert events[-1].test_accuracy > 0.75
    assert events[-1].eta_seconds == 0
    again = list(train(two, digits, recipe, seed=1, device="cpu"))
    assert same(one, two)
    assert [e.loss for e in events] == [e.loss for e in again]
    list(train(other, digits, recipe, seed=2, device="cpu"))
    assert not same(one, other)


def test_the_average_is_what_is_tested_and_kept(digits):
    recipe = Recipe(3, 50, ema_decay=0.9, augment=PLAIN)
    model = net()
    events = list(train(model, digits, recipe, device="cpu"))
    assert evaluate(model, digits).accuracy == events[-1].test_accuracy
    plain = net()
    list(train(plain, digits, replace(recipe, ema_decay=0.0), device="cpu"))
    assert not same(model, plain)


def test_evaluate_every(digits):
    recipe = Recipe(5, 50, augment=PLAIN)
    looks = [e.test_accuracy is not None for e in train(net(), digits, recipe, device="cpu", evaluate_every=2)]
    assert looks == [False, True, False, True, True]
    assert all(e.test_loss is None for e in train(net(), digits, recipe, device="cpu", evaluate_every=0))


class After:
    """Says stop when asked for the n-th time."""

    def __init__(self, count):
        self.left = count

    def __call__(self):
        self.left -= 1
        return self.left == 0


RESUMED = {
    "sgd": Recipe(3, 50, augment=Augment(1, False)),
    "adamw, average, clipping": Recipe(3, 50, AdamW(1e-2), Cosine(1), ema_decay=0.9, grad_clip=1.0),
    "muon": Recipe(3, 50, Muon(1e-2), augment=Augment(1, False)),
    "lamb": Recipe(3, 50, Lamb(1e-2), augment=Augment(1, False)),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("cut", [1, 3, 4, 5, 8, 11, 12])
def test_resuming_at_any_step_is_bitwise_the_uninterrupted_run(digits, tmp_path, name, cut):
    whole, first, second = net(dropout=0.3), net(dropout=0.3), net(seed=9, dropout=0.3)
    events = list(train(whole, digits, RESUMED[name], seed=3, device="cpu"))
    with pytest.raises(Stopped, match=f"stopped at step {cut} of 12; the same command goes on"):
        list(train(first, digits, RESUMED[name], seed=3, device="cpu", out=tmp_path, stop=After(cut)))
    torch.manual_seed(99)  # the process that goes on is another one
    resumed = list(train(second, digits, RESUMED[name], seed=3, device="cpu", out=tmp_path))
    assert same(whole, second)
    assert [(e.epoch, e.loss, e.train_accuracy, e.test_loss) for e in resumed] == [
        (e.epoch, e.loss, e.train_accuracy, e.test_loss) for e in events
    ]
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [e.loss for e in events]


@pytest.mark.parametrize("name", RESUMED)
def test_what_an_optimiser_keeps_has_its_type_again(digits, name):
    """A flag that became a tensor would be fetched from a GPU in every step."""
    first, second = (Run(net(), digits, RESUMED[name], 3, torch.device("cpu")) for _ in range(2))
    first.advance()
    restore(second, state(first), first.step)
    kept = [
        [[type(value) for value in slots.values()] for slots in run.optimizer.state.values()] for run in (first, second)
    ]
    assert kept[0] == kept[1]
    assert name != "muon" or bool in kept[0][0]


def test_a_finished_run_is_read_not_trained_again(digits, tmp_path):
    recipe, model, again = Recipe(2, 50, ema_decay=0.5), net(), net(seed=4)
    events = list(train(model, digits, recipe, device="cpu", out=tmp_path))
    repeated = list(train(again, digits, recipe, device="cpu", out=tmp_path, stop=lambda: pytest.fail("trained")))
    assert repeated == events
    assert same(model, again)


def test_the_folder_of_a_finished_run(digits, tmp_path):
    model = net()
    spec = {"name": "some_net", "kwargs": {"num_classes": 10}}
    events = list(train(model, digits, Recipe(3, 50), seed=7, device="cpu", out=tmp_path, spec=spec))
    found = checkpoint.load(tmp_path)
    assert same(found.load_into(net(seed=8)), model)
    record = found.record
    assert record["model"] == spec | {"num_params": sum(p.numel() for p in model.parameters())}
    assert record["seed"] == 7
    assert record["recipe"] == Recipe(3, 50).to_dict()
    assert record["data"]["sha256"] == digits.sha256
    assert record["result"]["test_accuracy"] == events[-1].test_accuracy
    assert record["epochs"] == [e.to_dict() for e in events]
    assert {"command", "code_version", "versions", "device", "date"} <= record.keys()
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step-00000008", "step-00000012"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": Recipe(4, 50)}, r"another recipe \(epochs 3 there, 4 now\)"),
        ({"seed": 1}, "another seed"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}, r"another model \('\(0\): Conv2d"),
    ],
)
def test_another_run_in_the_folder_is_refused_unless_started_anew(digits, tmp_path, change, message):
    list(train(net(), digits, Recipe(3, 50), seed=0, device="cpu", out=tmp_path))
    new = {"model": net(), "data": digits, "recipe": Recipe(3, 50), "seed": 0} | change
    with pytest.raises(UsageError, match=message):
        train(**new, device="cpu", out=tmp_path)
    assert len(list(train(**new, device="cpu", out=tmp_path, resume=False))) == new["recipe"].epochs


def test_a_run_started_anew_leaves_nothing_of_the_old_one(digits, tmp_path):
    recipe = Recipe(3, 50)
    list(train(net(), digits, recipe, device="cpu", out=tmp_path, resume=False))  # there was nothing
    with pytest.raises(Stopped):
        list(train(net(), digits, recipe, device="cpu", out=tmp_path, resume=False, stop=After(1)))
    assert [place.name for place in (tmp_path / "state").iterdir()] == ["step-00000001"]
    assert (tmp_path / "events.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda recipe: recipe | {"epochs": 4}, r"another recipe \(epochs 4 there, 3 now\);"),
        (lambda recipe: recipe | {"magic": None}, r"another recipe \(magic None there, 'unknown' now\);"),
        (lambda recipe: {key: recipe[key] for key in recipe if key != "amp"}, r"\(amp 'unknown' there, 'fp32' now\);"),
        (lambda recipe: None, "another recipe;"),
    ],
)
def test_a_state_of_another_version_is_refused_with_the_first_difference(digits, tmp_path, change, message):
    list(train(net(), digits, Recipe(3, 50), device="cpu", out=tmp_path))
    place = tmp_path / "state" / "step-00000012"
    tensors, values = checkpoint.read_folder(place)
    values["state.json"]["recipe"] = change(values["state.json"]["recipe"])
    checkpoint.write_folder(place, tensors, values)
    with pytest.raises(UsageError, match=message):
        train(net(), digits, Recipe(3, 50), device="cpu", out=tmp_path)


def test_an_old_state_that_cannot_be_dropped_does_not_stop_the_run(digits, tmp_path, monkeypatch):
    def busy(path, **where):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "rmdir", busy)
    assert len(list(train(net(), digits, Recipe(4, 50), device="cpu", out=tmp_path))) == 4
    monkeypatch.undo()
    again = list(train(net(), digits, Recipe(4, 50), device="cpu", out=tmp_path, stop=lambda: pytest.fail("trained")))
    assert len(again) == 4


def test_a_damaged_state_is_named_and_the_one_before_it_used(digits, tmp_path, caplog):
    whole, again = net(), net()
    list(train(whole, digits, Recipe(3, 50), device="cpu", out=tmp_path))
    place = tmp_path / "state" / "step-00000012" / "state.safetensors"
    data = bytearray(place.read_bytes())
    data[-3] ^= 4
    place.write_bytes(data)
    (tmp_path / "state" / ".step-00000099.1.partial").mkdir()
    (tmp_path / ".record.json.1.partial").write_text("{")
    asked = []
    list(train(again, digits, Recipe(3, 50), device="cpu", out=tmp_path, stop=lambda: asked.append(1)))
    assert len(asked) == 4  # one epoch, from step 8
    assert same(whole, again)
    assert "was changed after it was written" in caplog.text
    assert not list(tmp_path.rglob("*.partial"))


def test_sigterm_saves_and_stops(digits, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with StopOnSignal() as stop:
        events = train(net(), digits, Recipe(9, 50), device="cpu", out=tmp_path, stop=stop)
        next(events)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            next(events)
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "state" / "step-00000005").is_dir()
    assert not (tmp_path / "manifest.json").exists()


def test_a_stop_during_an_evaluation_is_heard_and_the_evaluation_made_again(digits, tmp_path, monkeypatch):
    whole, second = net(dropout=0.3), net(seed=9, dropout=0.3)
    events = list(train(whole, digits, RESUMED["sgd"], seed=3, device="cpu"))
    monkeypatch.setattr(
        run_module, "evaluate", partial(evaluate, batch_size=100)
    )  # 359 images: three times between batches
    with pytest.raises(Stopped, match="stopped at step 4 of 12"):
        list(train(net(dropout=0.3), digits, RESUMED["sgd"], seed=3, device="cpu", out=tmp_path, stop=After(6)))
    assert (tmp_path / "events.jsonl").read_text() == ""
    resumed = list(train(second, digits, RESUMED["sgd"], seed=3, device="cpu", out=tmp_path))
    assert same(whole, second)
    assert [(e.loss, e.train_accuracy, e.test_accuracy) for e in resumed] == [
        (e.loss, e.train_accuracy, e.test_accuracy) for e in events
    ]


class Fuse(nn.Module):
    """Lets `good` batches pass, then divides by zero."""

    def __init__(self, good):
        super().__init__()
        self.good = good

    def forward(self, x):
        self.good -= self.training
        return x / 0 if self.good < 0 else x


def test_a_loss_that_is_not_finite_names_the_layer_and_keeps_the_last_good_state(digits, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 20), Fuse(6)), nn.Linear(20, 10))
    with pytest.raises(NotFinite, match=r"step 6 of 12, first in layer '1.1' \(Fuse\): its weights are finite"):
        list(train(model, digits, Recipe(3, 50), device="cpu", out=tmp_path))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["step-00000004"]


def test_broken_weights_are_named(digits):
    model = net()
    with torch.no_grad():
        model[5].weight[3, 7] = float("nan")
    with pytest.raises(NotFinite, match=r"first in layer '5' \(Linear\): its weight is not finite"):
        list(train(model, digits, Recipe(1, 50), device="cpu"))


def test_requests_that_cannot_work_are_refused_before_any_step(digits, tmp_path):
    colour = load_data("digits", image_size=8, channels=3)
    with pytest.raises(UsageError, match=r"3 channel\(s\), the model takes 1; use channels=1"):
        train(net(), colour, Recipe())
    with pytest.raises(UsageError, match=r"the model refuses images of 1x16x16: .*mat1 and mat2"):
        train(net(), load_data("digits"), Recipe())
    with pytest.raises(UsageError, match=r"output for 2 images is \(2, 7\), the data needs \(2, 10\)"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), digits, Recipe())
    with pytest.raises(UsageError, match="batch size 201 is more than the 200 training images"):
        train(net(), digits, Recipe(1, 201))
    with pytest.raises(UsageError, match="no parameter"):
        check_fit(nn.Flatten(), digits)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot write to .*file"):
        train(net(), digits, Recipe(1, 50), out=tmp_path / "file")


@pytest.mark.parametrize("name", ["banana", "meta:x", *([] if torch.cuda.is_available() else ["cuda", "cuda:3"])])
def test_devices_this_machine_has_not(name):
    with pytest.raises(UsageError, match=f"device '{name}' is not available"):
        pick_device(name)


def test_bfloat16_autocast_trains_in_float32_weights(digits):
    model, full = net(), net()
    recipe = Recipe(2, 50, augment=PLAIN, amp="bf16")
    events = list(train(model, digits, recipe, device="cpu"))
    list(train(full, digits, replace(recipe, amp="fp32"), device="cpu"))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not same(model, full)
    assert events[-1].loss < events[0].loss
