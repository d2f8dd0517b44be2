"""`pnnh train` from its arguments to its exit code."""

import json
import os
import stat

import pytest
import torch

from pnnh import checkpoint, load_model
from pnnh.cli import main

ARGUMENTS = ["--limit", "60", "--image-size", "8", "--batch-size", "30", "--device", "cpu"]


def run(*arguments):
    return main(["train", *map(str, arguments)])


def test_train_writes_a_model_every_command_can_load(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("pnnh_resnet_tiny", "--epochs", 2, "--out", out, *ARGUMENTS) == 0
    text = capsys.readouterr().out
    assert "epoch 2/2" in text
    assert "test accuracy" in text
    model = load_model(out)
    found = checkpoint.load(out)
    assert all(torch.equal(value, found.tensors[name]) for name, value in model.state_dict().items())
    assert found.record["model"]["name"] == "pnnh_resnet_tiny"
    assert found.record["model"]["kwargs"] == {"num_classes": 10, "in_chans": 1}
    assert found.record["data"]["num_train"] == 60
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert run("pnnh_resnet_tiny", "--epochs", 2, "--out", out, *ARGUMENTS) == 0  # finished: shown again, not trained
    assert capsys.readouterr().out == text
    assert run(out, "--epochs", 1, "--out", tmp_path / "more", *ARGUMENTS) == 0  # goes on from the weights
    assert checkpoint.load(tmp_path / "more").record["model"]["name"] == "pnnh_resnet_tiny"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pnnh_resnet_tiny", "--data", "digit"], 2, "did you mean 'digits'?"),
        (["no_such_net"], 2, "no_such_net"),
        (["pnnh_resnet_tiny", "--epochs", "0"], 2, "epochs 0 must be at least 1"),
        (["pnnh_resnet_tiny", "--image-size", "4"], 2, "image size 4 must be at least 8"),
        (["pnnh_resnet_tiny", "--limit", "5"], 2, "limit 5 must be between"),
        (["pnnh_resnet_tiny", "--data", "folder:/nowhere"], 2, "no folder /nowhere"),
        (["pnnh_resnet_tiny", "--device", "abacus"], 2, "device 'abacus' is not available"),
        (["torch.nn:Identity"], 2, "no parameter to train"),
        ([f"{__name__}:three_channel_net"], 2, "images have 1 channel(s), the model takes 3"),
        ([f"{__name__}:exploding_net", "--epochs", "1"], 1, "first in layer '1' (Explode)"),
    ],
)
def test_bad_requests_are_one_line_and_write_no_model(tmp_path, capsys, monkeypatch, arguments, code, message):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    assert run(*arguments, "--out", tmp_path / "out") == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert error.startswith("pnnh train: ")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_an_unwritable_folder_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("pnnh_resnet_tiny", "--out", tmp_path / "file" / "out", *ARGUMENTS) == 2
    assert f"cannot write to {tmp_path / 'file' / 'out'}" in capsys.readouterr().err
    if os.geteuid() != 0:  # root may write anywhere
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        assert run("pnnh_resnet_tiny", "--out", tmp_path / "out", *ARGUMENTS) == 2
        tmp_path.chmod(stat.S_IRWXU)


def test_sigterm_has_its_own_exit_code_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    from pnnh.train import StopOnSignal

    arguments = ("pnnh_resnet_tiny", "--epochs", 3, "--out", tmp_path / "cut", *ARGUMENTS)
    asked = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "__call__", lambda _: next(asked))
        assert run(*arguments) == 75
    assert "stopped at step 3 of 6; the same command goes on" in capsys.readouterr().err
    assert run(*arguments) == 0
    assert run("pnnh_resnet_tiny", "--epochs", 3, "--out", tmp_path / "whole", *ARGUMENTS) == 0
    cut, whole = (checkpoint.load(tmp_path / name).tensors for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def three_channel_net():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10)
    )


class Explode(torch.nn.Module):
    def forward(self, x):
        return x / 0 if self.training else x


def exploding_net():
    return torch.nn.Sequential(torch.nn.Flatten(), Explode(), torch.nn.Linear(256, 10))


def test_a_run_is_watched_and_says_what_its_accuracy_is_worth(tmp_path, capsys):
    assert run("pnnh_resnet_tiny", "--epochs", 1, "--watch", 2, "--out", tmp_path / "out", *ARGUMENTS) == 0
    said = capsys.readouterr().out
    assert "359 images, chance 10.3 %, after few steps: batch norm statistics recomputed" in said
    lines = (tmp_path / "out" / "watch.csv").read_text().splitlines()
    assert lines[0] == "step,depth,layer,op,survival,dead,gradient"
    assert {line.split(",")[0] for line in lines[1:]} == {"0"}
    assert run("pnnh_resnet_tiny", "--watch", 0, "--out", tmp_path / "no", *ARGUMENTS) == 2
    assert "every 0 must be at least 1" in capsys.readouterr().err
