"""DISTS: the formula against another implementation, its column, and that no other weights pass under its name."""

from itertools import pairwise

import piq
import pytest
import torch
from piq.perceptual import ContentLoss
from torch import nn

from pnnh._errors import UsageError
from pnnh.analysis import Decoder, Dists, diagnose, load_dists
from pnnh.analysis import dists as home

CHANNELS = (3, 6, 8, 9)


@pytest.fixture
def stages():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(CHANNELS)]


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, sum(CHANNELS), 1, 1, generator=generator) for _ in range(2)]


def test_formula_against_piq(stages, weights):
    """piq's class with a network and weights handed in: it cannot be made without its downloads."""
    alpha, beta = (weight / (weights[0].sum() + weights[1].sum()) for weight in weights)
    layers = [stages[0], nn.MaxPool2d(2), stages[1], nn.MaxPool2d(2), stages[2]]
    other = piq.DISTS.__new__(piq.DISTS)
    split = [*alpha.split(CHANNELS, 1), *beta.split(CHANNELS, 1)]
    how = {"replace_pooling": True, "reduction": "none", "allow_layers_weights_mismatch": True}
    ContentLoss.__init__(other, nn.Sequential(*layers), layers=["0", "2", "4"], weights=split, **how)
    other.model = other.replace_pooling(nn.Sequential(*layers))
    generator = torch.Generator().manual_seed(2)
    x, y = torch.rand(2, 4, 3, 24, 20, generator=generator)
    ours = Dists(stages, *weights)
    assert ours(x, y).tolist() == pytest.approx(other(x, y).tolist(), abs=2e-5)
    assert ours(x, y).min() > 0.1
    assert ours(x, x).abs().max() < 1e-5


def test_the_column_and_its_floor(stages, weights):
    class Pair(nn.Module):
        def forward(self, x):
            torch.cat([x, -x], 1).relu()
            return torch.randn(len(x), 6, 8, 8).relu()

    images = torch.rand(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    how = {"decoder": Decoder(grid=4, features=64), "draws": 3}
    found = diagnose(Pair(), images, dists=Dists(stages, *weights), **how)
    kept, lost = found.layers
    assert kept.dists < 0.01 < 0.2 < kept.dists_low
    assert lost.dists > 0.2
    assert found.crossing("dists") in (None, 2)
    (without, _) = diagnose(Pair(), images, **how).layers
    assert without.dists != without.dists
    with pytest.raises(UsageError, match="4 channels"):
        diagnose(Pair(), torch.rand(8, 4, 16, 16), dists=Dists(stages, *weights))


def test_other_weights_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "vgg16-397923af.pth"
    with pytest.raises(UsageError, match="no file at"):
        load_dists(file)
    torch.save({"features.0.weight": torch.randn(64, 3, 3, 3)}, file)
    with pytest.raises(UsageError, match=r"is not torchvision's vgg16-397923af\.pth: its SHA-256"):
        load_dists(file)
    monkeypatch.setattr(home, "_checked", lambda *_: {})
    monkeypatch.setattr(home.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'pnnh\[dists\]'"):
        load_dists(file)


def test_stages_are_cut_before_the_poolings(tmp_path, monkeypatch, weights):
    """With the check taken away, VGG-16 of random weights: five stages of 2, 2, 3, 3, 3 convolutions in their order."""
    from torchvision.models.vgg import cfgs, make_layers

    state = {f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()}
    ones = {"alpha": torch.ones(1, 1475, 1, 1), "beta": torch.ones(1, 1475, 1, 1)}
    monkeypatch.setattr(home, "_checked", lambda file, *_: ones if file.name == "weights.pt" else state)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(home.importlib.util, "find_spec", lambda _: spec)
    found = load_dists(tmp_path)
    assert [sum(isinstance(layer, nn.Conv2d) for layer in stage) for stage in found.stages] == [2, 2, 3, 3, 3]
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in found.modules())
    assert torch.equal(found.stages[4][0].weight, state["features.24.weight"])
    assert [m.shape[1] for m in found.maps(torch.rand(1, 3, 32, 32))] == [3, 64, 128, 256, 512, 512]
