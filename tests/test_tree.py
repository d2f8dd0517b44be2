"""pnnh._tree: every edge, shared modules once, replacing respects sharing."""

from torch import nn

from pnnh import _tree


def shared_net():
    shared = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return nn.ModuleDict({"a": nn.Sequential(shared, nn.Tanh()), "b": shared, "c": nn.ModuleList([shared[1]])})


def test_every_edge_once():
    net = shared_net()
    assert [edge.path for edge in _tree.edges(net)] == ["a", "a.0", "a.0.0", "a.0.1", "a.1", "b", "c", "c.0"]
    assert all(edge.parent._modules[edge.name] is edge.child for edge in _tree.edges(net))


def test_paths_agree_with_torch():
    net = shared_net()
    assert {path: module for module, path in _tree.paths(net).items()} == dict(net.named_modules())


def test_replace_once_and_write_everywhere():
    net, asked = shared_net(), []

    def swap(path, module):
        asked.append(path)
        return nn.GELU() if isinstance(module, nn.ReLU) else None

    assert _tree.replace(net, swap) is net
    assert isinstance(net["b"][1], nn.GELU)
    assert net["b"][1] is net["c"][0] is net["a"][0][1]
    assert len(asked) == len(set(asked)) == 7


def test_inside_of_a_replaced_module_is_left_but_reached_elsewhere():
    net = shared_net()
    _tree.replace(net, lambda path, module: nn.Identity() if path == "a" else nn.SiLU() if path == "b.1" else None)
    assert isinstance(net["a"], nn.Identity)
    assert isinstance(net["b"][1], nn.SiLU)
    assert net["c"][0] is net["b"][1]


def test_replace_root_and_unwrap():
    net = nn.ReLU()
    assert isinstance(_tree.replace(net, lambda path, module: nn.Identity()), nn.Identity)
    assert _tree.unwrap(nn.DataParallel(net)) is net
