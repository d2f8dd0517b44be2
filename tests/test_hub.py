"""Trained nets through timm: written, built again by `local-dir:`, with a card that says what the record says."""

import pytest
import timm
import torch
from safetensors.torch import load_file

import pnnh.models  # noqa: F401
from pnnh._errors import RunError, UsageError
from pnnh.cli import main
from pnnh.hub import publish
from pnnh.report.card import model_card
from pnnh.train import Augment, Recipe, checkpoint, load_data, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as `pnnh train` writes it."""
    out = tmp_path_factory.mktemp("trained")
    data = load_data("digits", image_size=8, limit=60)
    torch.manual_seed(0)
    kwargs = {"num_classes": 10, "in_chans": 1}
    model = timm.create_model("pnnh_resnet_tiny", **kwargs)
    recipe, spec = Recipe(1, 30, augment=Augment(1, False)), {"name": "pnnh_resnet_tiny", "kwargs": kwargs}
    list(train(model, data, recipe, device="cpu", out=out, spec=spec))
    return out


def opened(folder):
    from pnnh.load import open_model

    return open_model(folder).model, checkpoint.load(folder).record


def test_what_timm_reads_back_is_what_was_trained(trained, tmp_path):
    model, record = opened(trained)
    out = publish(model, record, tmp_path / "hub")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "record.json",
    ]
    again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(again(images), model(images), rtol=1e-4, atol=1e-5)
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == again.state_dict().keys()
    other = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=3)
    assert other.eval()(images).shape == (5, 3)
    config = timm.data.resolve_data_config(model=again)
    assert config["input_size"] == (1, 8, 8)
    assert config["mean"] == pytest.approx(record["data"]["mean"])
    assert again.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]


def test_the_card_says_what_the_record_says(trained):
    record = checkpoint.load(trained).record
    card = model_card(record)
    for told in (
        f"| test accuracy | {100 * record['result']['test_accuracy']:.2f} % |",
        "digits: 60 images to train, 359 to test, 10 classes, 1 channel(s), 8 x 8 pixels.",
        "- optimizer: SGD(lr 0.1, momentum 0.9, nesterov True)",
        f"{record['model']['num_params']:,} parameters",
        "library_name: timm",
        "## Limits",
    ):
        assert told in card
    noted = record | {"data": record["data"] | {"notes": ["2 image(s) could not be decoded: a.png, b.png"]}}
    assert "2 image(s) could not be decoded: a.png, b.png" in model_card(noted)
    assert "no result" in model_card({"model": {"name": "x"}})


def test_the_command(trained, tmp_path, capsys):
    assert main(["hub", str(trained), "--out", str(tmp_path / "hub")]) == 0
    assert f'timm.create_model("local-dir:{tmp_path / "hub"}", pretrained=True)' in capsys.readouterr().out
    assert main(["hub", "resnet18", "--out", str(tmp_path)]) == 2
    assert "resnet18 is no folder that `pnnh train` wrote" in capsys.readouterr().err


def test_what_cannot_be_published_is_refused(trained, tmp_path):
    model, record = opened(trained)
    with pytest.raises(UsageError, match="'mine:net' is none; register it"):
        publish(model, record | {"model": {"name": "mine:net"}}, tmp_path)
    with pytest.raises(UsageError, match="this one is fused"):
        publish(model, record | {"model": record["model"] | {"storage": "fused"}}, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        publish(model, record, tmp_path / "file")


def test_what_reads_back_differently_is_not_published(trained, tmp_path):
    model, record = opened(trained)
    model.register_forward_hook(lambda module, images, logits: logits + 1)
    with pytest.raises(RunError, match="gives other outputs"):
        publish(model, record, tmp_path / "hub")
