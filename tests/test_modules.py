"""pnnh._modules: every edge, shared modules once, replacing respects sharing."""

import contextlib
import random

import pytest
import torch
from torch import nn

from pnnh import _modules
from pnnh._errors import UsageError


def shared_net():
    shared = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return nn.ModuleDict({"a": nn.Sequential(shared, nn.Tanh()), "b": shared, "c": nn.ModuleList([shared[1]])})


def test_every_edge_once():
    net = shared_net()
    assert [edge.path for edge in _modules.edges(net)] == ["a", "a.0", "a.0.0", "a.0.1", "a.1", "b", "c", "c.0"]
    assert all(edge.parent._modules[edge.name] is edge.child for edge in _modules.edges(net))


def test_paths_agree_with_torch():
    net = shared_net()
    assert {path: module for module, path in _modules.paths(net).items()} == dict(net.named_modules())


def test_replace_once_and_write_everywhere():
    net, asked = shared_net(), []

    def swap(path, module):
        asked.append(path)
        return nn.GELU() if isinstance(module, nn.ReLU) else None

    assert _modules.replace(net, swap) is net
    assert isinstance(net["b"][1], nn.GELU)
    assert net["b"][1] is net["c"][0] is net["a"][0][1]
    assert len(asked) == len(set(asked)) == 7


def test_inside_of_a_replaced_module_is_left_but_reached_elsewhere():
    net = shared_net()
    _modules.replace(net, lambda path, module: nn.Identity() if path == "a" else nn.SiLU() if path == "b.1" else None)
    assert isinstance(net["a"], nn.Identity)
    assert isinstance(net["b"][1], nn.SiLU)
    assert net["c"][0] is net["b"][1]


def test_replace_root_and_unwrap():
    net = nn.ReLU()
    assert isinstance(_modules.replace(net, lambda path, module: nn.Identity()), nn.Identity)
    assert _modules.unwrap(nn.DataParallel(net)) is net


class Restless(nn.Module):
    """Changes everything it can while it runs, then raises if told to."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.utils.weight_norm(nn.Conv2d(2, 2, 1)), nn.BatchNorm2d(2)
        self.register_buffer("count", torch.zeros(()))
        self.calls, self.seen, self.fail = 0, [], False

    def forward(self, x):
        self.calls += 1
        self.seen.append(x.mean().item())
        self.count += 1
        self.conv.weight_g.data.mul_(2)
        self.norm.register_forward_hook(lambda *_: None)
        self.norm.eval()
        self.extra = torch.rand(1) + random.random()
        if self.fail:
            raise RuntimeError("no")
        return self.norm(self.conv(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("fail", [False, True])
def test_a_model_is_left_as_found_whatever_it_does(fail):
    net, x = Restless().train(), torch.randn(3, 2, 4, 4)
    net.fail = fail
    state, weight = {name: value.clone() for name, value in net.state_dict().items()}, net.conv.weight
    torch.manual_seed(0), random.seed(0)
    with contextlib.suppress(RuntimeError), _modules.left_as_found(net, training=False):
        net(x)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert (net.calls, net.seen, net.norm._forward_hooks, hasattr(net, "extra")) == (0, [], {}, False)
    assert net.conv.weight is weight
    assert net.training
    assert net.norm.training
    drawn = torch.rand(1).item(), random.random()
    torch.manual_seed(0), random.seed(0)
    assert drawn == (torch.rand(1).item(), random.random())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_copy_of_hooked_and_shared_weights_is_equal_and_apart():
    conv = nn.utils.weight_norm(nn.Conv2d(2, 2, 1))
    net = nn.Sequential(conv, nn.utils.spectral_norm(nn.Conv2d(2, 2, 1)), conv).eval()
    x = torch.randn(1, 2, 3, 3)
    double = _modules.copied(net, dtype=torch.float64)
    torch.testing.assert_close(double(x.double()).float(), net(x))
    assert double[0] is double[2]
    assert double[0] is not conv
    assert {value.dtype for value in double.state_dict().values()} == {torch.float64}
    assert {value.device.type for value in _modules.copied(net, device="meta").state_dict().values()} == {"meta"}


def test_lazy_layers_are_refused_by_their_path():
    net = nn.Sequential(nn.LazyConv2d(3, 3))
    refusal = pytest.raises(
        UsageError, match=r"^0 is a lazy layer without weights yet \(LazyConv2d\); run the model once"
    )
    with refusal, _modules.left_as_found(net):
        pass


def test_eval_mode_gives_every_module_its_own_mode_back():
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2)).train()
    net[1].eval()
    with _modules.eval_mode(net):
        assert not any(module.training for module in net.modules())
    assert (net.training, net[0].training, net[1].training) == (True, True, False)
