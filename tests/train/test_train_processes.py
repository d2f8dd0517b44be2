"""Two and three processes over gloo on a CPU, forked: one update, evaluation, checkpoints, and bad ends."""

import os
import pickle
import tempfile
import traceback
from pathlib import Path

import pytest
import torch
from timm.models._manipulate import checkpoint_seq
from torch import distributed, nn

from pnnh import layers
from pnnh._errors import UsageError
from pnnh.train import (
    SGD,
    AdamW,
    Augment,
    Execution,
    Lamb,
    Mixing,
    Muon,
    NotFinite,
    Recipe,
    Stopped,
    checkpoint,
    evaluate,
    join,
    load_data,
    train,
)  # fmt: skip
from pnnh.train.run import Run

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
CPU = torch.device("cpu")
RECIPE = Recipe(2, 40, SGD(lr=0.1), augment=Augment(1, False))


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", image_size=8, limit=200)


def together(work, size=2, fails=False):
    """`work()` in `size` forked processes, set up as torchrun does it; what each returned or, if it `fails`, its error.

    An error is (type, message).
    """
    with tempfile.TemporaryDirectory() as place:
        children = [_forked(work, rank, size, Path(place)) for rank in range(size)]
        for child in children:
            os.waitpid(child, 0)
        told = [pickle.loads((Path(place) / str(rank)).read_bytes()) for rank in range(size)]
    for failed, _, trace in told:
        assert failed == fails, trace
    return [result for _, result, _ in told]


def _forked(work, rank, size, place):
    """They meet at a file: a port that was free a moment ago need not be, least of all on a busy machine."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
        os.environ |= {"LOCAL_WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # accelerate looks whether they are there
        join.cache_clear()
        try:
            if size > 1:
                distributed.init_process_group("gloo", f"file://{place}/store", rank=rank, world_size=size)
            told = (False, work(), "it did not fail")
        except Exception as error:
            told = (True, (type(error), str(error)), traceback.format_exc())
        (place / str(rank)).write_bytes(pickle.dumps(told))
    finally:
        os._exit(0)


class Net(nn.Module):
    """Two stages with shared coders; `norm` makes its norms."""

    def __init__(self, norm=lambda channels: nn.GroupNorm(1, channels)):
        super().__init__()
        torch.manual_seed(0)
        options = layers.PlainOptions(norm=norm)
        self.checkpointing = False
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.stages = nn.Sequential(
            layers.AlternatingStage(6, 6, 4, 4, options=options),
            layers.PipelinedStage(6, 8, 4, 3, stride=2, options=options),
        )
        self.head = nn.Linear(8, 10)

    def set_grad_checkpointing(self, enable=True):
        self.checkpointing = enable

    def forward(self, x):
        x = self.stem(x)
        x = checkpoint_seq(self.stages, x) if self.checkpointing and self.training else self.stages(x)
        return self.head(x.mean((2, 3)))


def batch_norm_net():
    return Net(nn.BatchNorm2d)


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def close(one, two, **tolerance):
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def equal(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(two[name], value), name


def steps(digits, execution, count=2, recipe=RECIPE, make=Net):
    """Weights after `count` updates and the last gradients."""
    run = Run(make(), digits, recipe, 3, CPU, execution=execution, processes=join())
    run.model.train()
    for _ in range(count):
        run.advance()
    return weights(run.model), {name: p.grad.clone() for name, p in run.model.named_parameters()}, run.sums()


SPREADS = {
    "one pass": Execution(),
    "two passes, checkpointing": Execution(accumulate=2, checkpointing=True),
}


@pytest.mark.parametrize("name", SPREADS)
def test_a_step_of_two_processes_is_the_step_of_one_at_double_batch(digits, name):
    expected, gradients, sums = steps(digits, Execution())
    (first, first_gradients, first_sums), (second, second_gradients, _) = together(lambda: steps(digits, SPREADS[name]))
    close(expected, first, rtol=1e-4, atol=1e-5)
    close(gradients, first_gradients, rtol=1e-3, atol=1e-5)
    assert first_sums == (pytest.approx(sums[0], rel=1e-5), sums[1])
    equal(first, second)
    equal(first_gradients, second_gradients)
    coders = [key for key in first_gradients if "coders" in key]
    assert len(coders) == 2
    assert all(first_gradients[key].abs().sum() > 0 for key in coders)


def test_passes_on_one_process_are_one_update(digits):
    whole_batch, _, sums = steps(digits, Execution())
    in_passes, _, their_sums = steps(digits, Execution(accumulate=4, checkpointing=True))
    close(whole_batch, in_passes, rtol=1e-4, atol=1e-5)
    assert their_sums == (pytest.approx(sums[0], rel=1e-5), sums[1])


@pytest.mark.parametrize("optimizer", [Lamb(1e-2), Muon(1e-2)])
def test_optimisers_that_look_at_a_whole_tensor_go_on_bitwise(digits, tmp_path, optimizer):
    recipe = Recipe(2, 80, optimizer, augment=Augment(1, False))
    expected, _, _ = steps(digits, Execution(), recipe=recipe)
    first, second = together(lambda: steps(digits, Execution(), recipe=recipe)[0])
    close(expected, first, rtol=1e-3, atol=1e-3 if isinstance(optimizer, Muon) else 1e-4)  # it works in bfloat16
    equal(first, second)
    whole_run = together(lambda: trained(digits, tmp_path / "whole", recipe=recipe))
    together(lambda: trained(digits, tmp_path / "cut", stop=At(3), recipe=recipe), fails=True)
    equal(whole_run[0][0], together(lambda: trained(digits, tmp_path / "cut", recipe=recipe))[0][0])


def test_bfloat16_clipping_average_and_mixing_of_two_processes(digits):
    choices = {"ema_decay": 0.9, "grad_clip": 0.1, "amp": "bf16", "mixing": Mixing()}
    recipe = Recipe(2, 40, AdamW(1e-2), augment=Augment(1, False), **choices)
    first, second = together(lambda: steps(digits, Execution(), recipe=recipe)[0])
    assert all(value.dtype == torch.float32 for value in first.values())
    equal(first, second)


def test_batch_norms_share_their_running_statistics(digits):
    first, second = together(lambda: steps(digits, Execution(), make=batch_norm_net)[0])
    equal(first, second)
    alone, _, _ = steps(digits, Execution(), make=batch_norm_net, count=1)
    both = together(lambda: steps(digits, Execution(), make=batch_norm_net, count=1)[0])[0]
    name = "stages.0.transition.stream.1.running_mean"  # linear in the images: the mean of means is the mean
    torch.testing.assert_close(both[name], alone[name], rtol=1e-4, atol=1e-6)
    assert not torch.equal(both[name], torch.zeros_like(both[name]))


@pytest.mark.parametrize("size", [2, 3])
def test_every_test_image_counts_once(digits, size):
    alone = evaluate(Net(), digits, batch_size=100)

    def work():
        run = Run(Net(), digits, Recipe(1, 60), 0, CPU, processes=join())
        return evaluate(run.model, digits, batch_size=59, processes=run.processes)  # 359: unequal numbers of batches

    for seen in together(work, size):
        assert seen.num_images == alone.num_images == 359
        assert (seen.accuracy, seen.chance) == (alone.accuracy, alone.chance)
        assert seen.loss == pytest.approx(alone.loss, rel=1e-5)


class At:
    """Asks to stop after the n-th step, in one process only."""

    def __init__(self, count, rank=1):
        self.left, self.rank = count, rank

    def __call__(self):
        self.left -= 1
        return self.left == 0 and join().rank == self.rank


def trained(digits, out, execution=None, stop=lambda: False, make=Net, recipe=RECIPE):
    model = make()
    events = list(train(model, digits, recipe, seed=3, device="cpu", out=out, stop=stop, execution=execution))
    return weights(model), [(e.loss, e.train_accuracy, e.test_accuracy) for e in events]


class Dropping(Net):
    def __init__(self):
        super().__init__(nn.BatchNorm2d)
        self.head = nn.Sequential(nn.Dropout(0.3), self.head)


def test_a_run_of_two_processes_stops_and_goes_on_bitwise(digits, tmp_path):
    recipe = Recipe(2, 80, AdamW(1e-2), ema_decay=0.9, augment=Augment(1, False))
    choices = {"make": Dropping, "recipe": recipe}
    whole_run = together(lambda: trained(digits, tmp_path / "whole", **choices))
    stopped = together(lambda: trained(digits, tmp_path / "cut", stop=At(3), **choices), fails=True)
    assert [kind for kind, _ in stopped] == [Stopped, Stopped]
    assert "stopped at step 3 of 4; the same command goes on" in stopped[1][1]
    assert sorted(path.name for path in (tmp_path / "cut" / "state").iterdir()) == ["step-00000002", "step-00000003"]
    resumed = together(lambda: trained(digits, tmp_path / "cut", **choices))
    for (ours, events), (theirs, expected) in zip(resumed, whole_run, strict=True):
        equal(theirs, ours)
        assert [e[1:] for e in events] == [e[1:] for e in expected]
        assert [e[0] for e in events] == pytest.approx([e[0] for e in expected], rel=1e-12)  # sums of two processes
    found = checkpoint.load(tmp_path / "cut")
    equal(whole_run[0][0], found.tensors)
    assert found.record["execution"]["processes"] == 2


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 2)])
def test_another_number_of_processes_goes_on_with_the_same_images(digits, tmp_path, before, after):
    recipe = Recipe(2, 60, SGD(lr=0.1), ema_decay=0.9, augment=Augment(1, False))

    def run(size, out, fails=False, **choices):
        return together(lambda: trained(digits, out, recipe=recipe, **choices), size, fails)

    expected = run(1, tmp_path / "whole")[0]
    assert run(before, tmp_path / "cut", fails=True, stop=At(2, rank=0))[0][0] is Stopped
    model, events = run(after, tmp_path / "cut")[0]
    close(expected[0], model, rtol=1e-3, atol=1e-4)
    assert [e[1:] for e in events] == [e[1:] for e in expected[1]]
    assert [e[0] for e in events] == pytest.approx([e[0] for e in expected[1]], rel=1e-4)


class BreaksInOneProcess(nn.Module):
    def forward(self, x):
        return x / 0 if self.training and join().rank == 1 else x


def test_a_broken_loss_in_one_process_is_named_in_all(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), BreaksInOneProcess())
    told = together(lambda: list(train(model, digits, RECIPE, device="cpu")), fails=True)
    for kind, text in told:
        assert kind is NotFinite
        assert "step 0 of 10, first in layer '2' (BreaksInOneProcess)" in text
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_what_the_first_process_cannot_do_all_refuse(digits, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for kind, text in together(lambda: trained(digits, tmp_path / "file"), fails=True):
        assert kind is UsageError
        assert "cannot write to" in text
    for kind, text in together(lambda: trained(digits, None, execution=Execution(accumulate=3)), fails=True):
        assert kind is UsageError
        assert "batch size 40 is not divisible among 2 process(es) x 3 pass(es); take a multiple of 6, e.g. 42" in text


def test_a_folder_has_one_writer(digits, tmp_path):
    events = train(Net(), digits, RECIPE, seed=3, device="cpu", out=tmp_path)
    next(events)
    [(kind, text)] = together(lambda: trained(digits, tmp_path), size=1, fails=True)
    assert kind is UsageError
    assert text == f"{tmp_path} is being written by another run; wait for it or choose another --out"
    events.close()
    with pytest.raises(Stopped) as stopped:
        list(train(Net(), digits, RECIPE, seed=3, device="cpu", out=tmp_path, stop=lambda: True))
    assert stopped.tb is not None  # the frames of the run are still there, its lock is not
    assert len(together(lambda: trained(digits, tmp_path), size=1)[0][1]) == 2


def test_the_command_under_torchrun(tmp_path):
    from pnnh.cli import main

    arguments = ["train", "pnnh_resnet_tiny", "--limit", "60", "--image-size", "8", "--batch-size", "30"]
    arguments += ["--epochs", "1", "--device", "cpu", "--accumulate", "3", "--checkpointing"]
    assert together(lambda: main([*arguments, "--out", str(tmp_path)])) == [0, 0]
    found = checkpoint.load(tmp_path).record
    assert found["execution"] == {"accumulate": 3, "checkpointing": True, "compile": False, "processes": 2}
    assert found["data"]["num_test"] == 359
