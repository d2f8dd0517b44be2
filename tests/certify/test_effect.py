"""The path effect on nets whose path is known, against a direct computation with hooks."""

import pytest
import torch
from torch import nn

from pnnh._errors import UsageError
from pnnh.certify import certify
from pnnh.layers import AlternatingStage, PipelinedStage

DATA = torch.randn(70, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 4, (70,), generator=torch.Generator().manual_seed(1))
EXAMPLE = DATA[:2]


class Net(nn.Module):
    """A stem with a ReLU, a body of 8 channels, a head."""

    def __init__(self, body, act=nn.ReLU):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act = nn.Conv2d(3, 8, 3), act()
        self.body, self.head = body(), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(self.act(self.stem(x))).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.inner, self.after = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        return self.after(x + self.conv2(self.inner(self.conv1(x))))


class Halved(nn.Module):
    """The first four channels carry the path through a fixed diagonal, the others only learn."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.5)
        self.register_buffer("keep", torch.tensor([1.0] * 4 + [0.0] * 4).view(8, 1, 1))

    def forward(self, x):
        return self.act(self.keep * x + self.conv(x))


def chain():
    return nn.Sequential(nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.ReLU())


def residual():
    return nn.Sequential(Residual(), Residual())


def plain(form):
    return lambda: form(8, 8, 4, 6)


def effect_of(body, **options):
    return certify(Net(body, **options).eval(), EXAMPLE, data=DATA, labels=LABELS).effect


@pytest.mark.parametrize(
    ("body", "modules"),
    [
        (chain, ["act", "body.1", "body.3"]),
        (residual, ["act", "body.0.after", "body.1.after"]),
        (nn.Identity, ["act"]),
        (plain(AlternatingStage), ["act", "body.transition.stream.2", *(f"body.layers.{i}.act" for i in range(5))]),
        (
            plain(PipelinedStage),
            ["act", "body.transition.stream.2", *(f"body.layers.{i}.write.act" for i in range(4)), "body.layers.4.act"],
        ),
    ],
)
def test_the_path_is_the_only_route_the_shortcuts_or_the_stream(body, modules):
    assert [item.module for item in effect_of(body).crossings] == modules


def test_changes_and_accuracies_equal_a_direct_computation():
    net = Net(residual).eval()
    found = certify(net, EXAMPLE, data=DATA, labels=LABELS).effect
    inputs = {}

    def keep(module, arguments, output):
        inputs[module] = arguments[0], output

    hooks = [m.register_forward_hook(keep) for m in net.modules()]
    with torch.no_grad():
        right = net(DATA).argmax(1) == LABELS
    for hook in hooks:
        hook.remove()
    for crossing, module in zip(found.crossings, [net.act, net.body[0].after, net.body[1].after], strict=True):
        z, after = inputs[module]
        assert crossing.change == pytest.approx(((after - z).norm() / z.norm()).item(), rel=1e-5)
    net.act = net.body[0].after = net.body[1].after = nn.Identity()
    with torch.no_grad():
        bare = net(DATA).argmax(1) == LABELS
    assert found.accuracy == pytest.approx(right.double().mean().item())
    assert found.accuracy_without == pytest.approx(bare.double().mean().item())
    assert found.images == 70


def test_activations_that_are_the_identity_have_no_effect():
    same = effect_of(lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.LeakyReLU(1.0)), act=lambda: nn.LeakyReLU(1.0))
    assert [item.change for item in same.crossings] == [0, 0]
    assert same.median == 0
    assert same.accuracy == same.accuracy_without
    none = effect_of(nn.Identity, act=nn.Identity)
    assert (none.crossings, none.median) == ((), 0)
    assert none.accuracy == none.accuracy_without


def test_of_a_sum_only_the_channels_count_that_the_path_feeds():
    net = Net(Halved).eval()
    last = certify(net, EXAMPLE, data=DATA).effect.crossings[-1]
    with torch.no_grad():
        x = net.stem(DATA).relu()
        z = (net.body.keep * x + net.body.conv(x))[:, :4]
    assert (last.module, last.channels) == ("body.act", 4)
    assert last.change == pytest.approx(((0.5 * z.clamp(max=0)).norm() / z.norm()).item(), rel=1e-5)


def test_the_effect_is_shown_with_the_certificate():
    certificate = certify(Net(chain), EXAMPLE, data=DATA, labels=LABELS)
    assert "the path crosses 3 activations, median change" in str(certificate)
    assert "without them" in str(certificate)
    assert [row["op"] for row in certificate.effect.rows()] == ["relu", "tanh", "relu"]
    assert "<td>tanh</td>" in certificate._repr_html_()
    assert "accuracy" not in str(certify(Net(chain), EXAMPLE, data=DATA))


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (torch.zeros(4, 3, 12, 12, dtype=torch.uint8), None, "floating point tensor"),
        (DATA, LABELS[:3], "70 class numbers"),
        (DATA[:0], None, "data must be"),
    ],
)
def test_bad_data_is_refused(data, labels, message):
    with pytest.raises(UsageError, match=message):
        certify(Net(chain), EXAMPLE, data=data, labels=labels)
    with pytest.raises(UsageError, match=r"not .images, classes."):
        certify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), EXAMPLE, data=DATA, labels=LABELS)
