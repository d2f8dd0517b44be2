"""What must never pass for a trained model: broken weights, another network, code named by a file, a lagging norm."""

import json
import math
import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from pnnh import checkpoint
from pnnh._errors import RunError, UsageError
from pnnh.cli import main
from pnnh.data import Dataset, Split
from pnnh.train import SGD, Augment, Execution, NotFinite, Recipe, Stopped, load_data, train, wilson
from pnnh.train.run import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", image_size=8, limit=200)


def net(act=nn.ReLU, seed=0, **options):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), act(**options), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10)
    )


class BreaksAfter(nn.Module):
    """Its gradient is NaN in the backward pass number `last`, its output never."""

    def __init__(self, last, buffer=False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("count", torch.zeros(()))
        self.last, self.buffer, self.calls = last, buffer, 0

    def forward(self, x):
        if self.training:
            self.calls += 1
        if self.calls == self.last and self.training and self.buffer:
            self.count.fill_(math.inf)
        elif self.calls == self.last and self.training:
            self.weight.register_hook(lambda gradient: gradient * math.nan)
        return x * self.weight


@pytest.mark.parametrize("buffer", [False, True])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_weights_that_break_in_the_last_update_are_a_failed_run(digits, tmp_path, buffer, ema_decay):
    model = nn.Sequential(BreaksAfter(8, buffer), nn.Flatten(), nn.Linear(64, 10))
    recipe = Recipe(2, 50, SGD(0.05), ema_decay=ema_decay)
    events = train(model, digits, recipe, out=tmp_path, device="cpu")
    assert next(events).step == 4
    with pytest.raises(NotFinite, match=rf"'0.{'count' if buffer else 'weight'}' is not finite after update 8 of 8"):
        next(events)
    assert not (tmp_path / "record.json").exists()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("lr", ["nan", "inf", "-inf", "0", "-1"])
def test_a_learning_rate_that_is_no_rate_is_refused_and_leaves_no_folder(tmp_path, capsys, lr):
    arguments = ["train", "pnnh_resnet_tiny", f"--lr={lr}", "--limit", "60", "--out", str(tmp_path / "runs" / "out")]
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"pnnh train: lr {float(lr)} must be ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["no_such_net"],
        ["pnnh_resnet_tiny", "--epochs", "0"],
        ["pnnh_resnet_tiny", "--device", "meta"],
        ["pnnh_resnet_tiny", "--batch-size", "400"],
        ["pnnh_resnet_tiny", "--accumulate", "7"],
        ["torch.nn:Identity"],
    ],
)
def test_a_refused_command_leaves_no_folder(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments, "--limit", "100"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_seeds_out_of_range(digits, seed):
    with pytest.raises(UsageError, match=rf"seed {seed} must be at least 0 and below 2\^63"):
        train(net(), digits, Recipe(1, 50), seed=seed)


class Scaled(nn.Module):
    """A module of a user's own that prints nothing of its setting."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


CHANGES = {
    "activation": (lambda: net(), lambda: net(nn.Tanh), r"\('\(1\): ReLU\(\)' there, '\(1\): Tanh\(\)' now\)"),
    "slope": (lambda: net(nn.LeakyReLU), lambda: net(nn.LeakyReLU, negative_slope=0.2), "negative_slope=0.01"),
    "dropout": (lambda: net(nn.Dropout, p=0.1), lambda: net(nn.Dropout, p=0.5), r"Dropout\(p=0.1"),
    "attribute": (lambda: net(Scaled, factor=1.0), lambda: net(Scaled, factor=2.0), "'factor': 1.0"),
    "shape": (lambda: net(), lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "Conv2d"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_network_of_the_same_shapes_does_not_go_on(digits, tmp_path, name):
    before, after, text = CHANGES[name]
    recipe = Recipe(2, 50, SGD(0.05))
    run = train(before(), digits, recipe, out=tmp_path, device="cpu")
    next(run)
    run.close()
    with pytest.raises(UsageError, match=rf"holds a run with another model .*{text}"):
        train(after(), digits, recipe, out=tmp_path, device="cpu")
    assert len(list(train(before(), digits, recipe, out=tmp_path, device="cpu"))) == 2


CODE = {
    "a module beside the checkpoint": {"name": "payload_of_checkpoint:f"},
    "a function of the library": {"name": "os:abort"},
    "a name of no registry": {"name": "no_such_model"},
    "no name": {"name": ["os:abort"]},
    "a hub": {"name": "hf-hub:someone/something"},
    "a file of weights": {"name": "pnnh_resnet_tiny", "kwargs": {"checkpoint_path": "payload.pth"}},
    "weights from elsewhere": {"name": "pnnh_resnet_tiny", "kwargs": {"pretrained": True}},
}


@pytest.mark.parametrize("what", CODE)
def test_a_record_names_no_code(tmp_path, monkeypatch, capsys, what):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("net", nn.Linear(2, 2), {"model": {"kwargs": {}} | CODE[what], "data": {}})
    (tmp_path / "payload_of_checkpoint.py").write_text("open('ran', 'w').close()\ndef f(): pass\n")
    assert main(["certify", "net"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pnnh certify: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_states_of_a_former_format_are_refused_not_trained_over(digits, tmp_path):
    folder = tmp_path / "state" / "step-00000004"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"format": "pnnh checkpoint 1", "files": {}}))
    with pytest.raises(UsageError, match=r"written by an older pnnh .*--no-resume\), starts anew") as refusal:
        train(net(), digits, Recipe(1, 50), out=tmp_path, device="cpu")
    assert "\n" not in str(refusal.value)
    assert len(list(train(net(), digits, Recipe(1, 50), out=tmp_path, device="cpu", resume=False))) == 1


def photographs(count, seed):
    """Two classes, 12 px: bright or dark on the left, under noise; brightness varies from image to image."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pixels = 110 + 40 * torch.randn(count, 1, 1, 1, generator=draw) + 25 * torch.randn(count, 3, 12, 12, generator=draw)
    pixels[:, :, :, :6] += (60 * labels - 30)[:, None, None, None]
    return Split(pixels.clamp(0, 255).to(torch.uint8), labels)


@pytest.fixture(scope="module")
def own_images():
    return Dataset("own", ("a", "b"), photographs(240, 1), photographs(60, 2), (0.43,) * 3, (0.19,) * 3, flip=False)


def normed_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.05)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 2))


SHORT = Recipe(3, 64, SGD(0.1), augment=Augment(1, False))


def test_after_few_steps_the_norms_are_recomputed_before_the_evaluation(own_images):
    """Nine steps: the running statistics are still mostly what they were at the start."""
    last = [
        list(train(normed_net(), own_images, replace(SHORT, recompute_norms=choice)))[-1]
        for choice in (False, True, None)
    ]
    lagging, recomputed, automatic = (event.test_accuracy for event in last)
    assert lagging <= 0.6
    assert recomputed >= 0.95
    assert automatic == recomputed
    assert last[1].train_accuracy == last[0].train_accuracy  # training itself is the same
    assert (last[1].chance, last[1].test_images) == (0.5, 60)
    assert last[1].interval == wilson(last[1].test_accuracy, 60)


def test_what_is_kept_is_what_was_evaluated_and_recorded(own_images, tmp_path):
    model = normed_net()
    events = list(train(model, own_images, SHORT, out=tmp_path, device="cpu"))
    found = checkpoint.load(tmp_path)
    result = found.record["result"]
    assert result["norms_recomputed"] is True
    assert result["test_accuracy"] == events[-1].test_accuracy
    assert (result["test_images"], result["chance"]) == (60, 0.5)
    assert tuple(result["interval"]) == events[-1].interval
    fresh = found.load_into(normed_net())
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (own_images.mean, own_images.std))
    with torch.no_grad():
        answers = fresh.eval()((own_images.test.images / 255 - mean) / std).argmax(1)
    assert (answers == own_images.test.labels).double().mean().item() == events[-1].test_accuracy
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in fresh.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
@pytest.mark.parametrize("amp", ["fp32", "bf16"])
def test_recomputing_does_not_disturb_a_run_that_goes_on(own_images, tmp_path, ema_decay, amp):
    recipe = Recipe(3, 64, SGD(0.1), augment=Augment(1, False), ema_decay=ema_decay, amp=amp)
    whole, cut = normed_net(), normed_net()
    expected = list(train(whole, own_images, recipe, seed=3, device="cpu"))
    asked = iter([False] * 4)
    with pytest.raises(Stopped):
        list(train(cut, own_images, recipe, seed=3, device="cpu", out=tmp_path, stop=lambda: next(asked, True)))
    resumed = normed_net()
    events = list(train(resumed, own_images, recipe, seed=3, device="cpu", out=tmp_path))
    assert [(e.loss, e.test_loss) for e in events] == [(e.loss, e.test_loss) for e in expected]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    again = normed_net()  # of a finished run nothing is left to train, and the norms are recomputed again
    list(train(again, own_images, recipe, seed=3, device="cpu", out=tmp_path))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())


def test_recomputed_statistics_are_those_of_the_images(own_images):
    recipe = Recipe(1, 60, augment=Augment(0, False), recompute_norms=True)
    run = Run(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(432, 2)), own_images, recipe, 0, CPU)
    images = run.normalise(own_images.train.images)  # 240 of them in four batches
    run.model.train()
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.evaluate()
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert run.model[0].momentum == 0.1
    assert run.model.training
    run.finish()
    torch.testing.assert_close(run.model[0].running_mean, images.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run.model[0].running_var, images.var((0, 2, 3)), rtol=0.02, atol=0)
    long = Recipe(500, 60, augment=Augment(0, False))
    assert not Run(
        nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(432, 2)), own_images, long, 0, CPU
    ).recomputes_norms


@pytest.mark.parametrize(("share", "count"), [(0.0, 20), (0.5, 60), (0.9173, 10_000), (1.0, 7)])
def test_wilson_is_the_solution_of_its_equation(share, count):
    """Both ends p satisfy |share - p| = z sqrt(p (1 - p) / count)."""
    for end in wilson(share, count):
        assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-9)
    low, high = wilson(share, count)
    assert 0 <= low <= share <= high <= 1


def test_every_step_is_told_without_changing_anything(digits):
    steps, silent, told = [], net(), net()
    list(train(silent, digits, Recipe(2, 50), device="cpu"))
    state = torch.get_rng_state()
    list(train(told, digits, Recipe(2, 50), device="cpu", on_step=steps.append))
    assert torch.equal(state, torch.get_rng_state())
    assert [(p.epoch, p.step) for p in steps] == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 5), (2, 6), (2, 7), (2, 8)]
    assert all(p.images_per_second > 0 and p.seconds_left >= 0 and (p.epochs, p.steps) == (2, 8) for p in steps)
    assert steps[-1].seconds_left == 0
    assert all(torch.equal(value, told.state_dict()[name]) for name, value in silent.state_dict().items())


def test_a_compiled_run_is_the_same_run_and_its_names_are_the_models(digits, tmp_path, monkeypatch):
    """torch.compile is taken at its word here; what is tested is what the loop does with its wrapper."""
    compiled = []

    def compile(model):
        compiled.append(torch._dynamo.eval_frame.OptimizedModule(model, lambda function, **_: function))
        return compiled[-1]

    monkeypatch.setattr(torch, "compile", compile)
    plain, wrapped = net(), net()
    list(train(plain, digits, Recipe(1, 50), device="cpu"))
    list(train(wrapped, digits, Recipe(1, 50), device="cpu", out=tmp_path, execution=Execution(compile=True)))
    assert len(compiled) == 1
    found = checkpoint.load(tmp_path)
    assert found.record["execution"]["compile"] is True
    assert all(torch.equal(value, found.tensors[name]) for name, value in plain.state_dict().items())


def test_compiling_without_a_compiler_is_refused(digits, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match="compile needs a C\\+\\+ compiler"):
        train(net(), digits, Recipe(1, 50), device="cpu", execution=Execution(compile=True))


@pytest.mark.parametrize("capabilities", [{"avx2": True}, {"avx512_bf16": True}, {"amx_bf16": True}])
def test_bfloat16_without_its_instructions_warns_once(digits, monkeypatch, caplog, capabilities):
    from pnnh.train import execution

    execution.has_fast_bf16.cache_clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    for _ in range(2):
        list(train(net(), digits, Recipe(1, 50, amp="bf16"), device="cpu"))
    assert caplog.text.count("no bfloat16 instructions") == (capabilities == {"avx2": True})
    execution.has_fast_bf16.cache_clear()


def test_a_state_that_does_not_fit_is_named(digits, tmp_path):
    list(train(net(), digits, Recipe(1, 50), device="cpu", out=tmp_path))
    folder = tmp_path / "state" / "step-00000004"
    tensors, values = checkpoint.read_folder(folder)
    del tensors["state.safetensors"]["sums.loss"]
    checkpoint.write_folder(folder, tensors, values)
    with pytest.raises(RunError, match="the saved state does not fit this run: 'loss'"):
        train(net(), digits, Recipe(1, 50), device="cpu", out=tmp_path)
    assert os.path.isdir(folder)
