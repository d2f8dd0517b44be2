"""pnnh.diagnose: what it sees, what it measures, what it leaves behind, and how it says no."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pnnh._errors import RunError, UsageError
from pnnh.analysis import Decoder, diagnose

CHEAP = {"decoder": Decoder(grid=4, features=8), "draws": 3, "batch_size": 8, "pictures": 2}


def pictures(count=16, size=16, channels=3, seed=0):
    """Smooth random pictures: neighbouring pixels are alike, as in photographs."""
    coarse = torch.randn(count, channels, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(size, size), mode="bilinear")


def chain(depth, width=16, norm=True, seed=0):
    torch.manual_seed(seed)
    layers, channels = [], 3
    for _ in range(depth):
        conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        layers += [conv, *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).train()


class Functional(nn.Module):
    """Activations as functions, a clamp, a reused module, tuple and dict outputs, a parameter that must not be seen."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.act, self.gate = nn.GELU(), nn.Parameter(torch.zeros(8, 8))

    def forward(self, x):
        x = self.first(x).relu_()
        x = self.act(self.again(x))
        x = self.act(self.again(x)) * torch.sigmoid(self.gate).mean()
        x = torch.clamp(x - x.mean(), min=0)
        return {"logits": (x.mean((2, 3)), [F.silu(x).sum((1, 2, 3))]), "step": 3}


def test_sees_modules_functions_and_reuse():
    found = diagnose(Functional(), pictures(), **CHEAP)
    assert [(layer.layer, layer.op) for layer in found.layers] == [
        ("(model)", "relu"),
        ("act", "gelu"),
        ("act#2", "gelu"),
        ("(model)#2", "relu"),
        ("(model)#3", "silu"),
    ]
    assert all(layer.gradient > 0 for layer in found.layers)
    rows = found.rows()
    assert [row["depth"] for row in rows] == [1, 2, 3, 4, 5]
    assert len({tuple(row) for row in rows}) == 1


def test_moments_and_survival_equal_a_direct_count():
    net, x = chain(2, norm=False).double(), pictures(24)
    first = diagnose(net, x, **CHEAP).layers[1]
    direct = net[2](net[:2](x.double()))
    assert first.mean == pytest.approx(direct.mean().item(), abs=1e-5)
    assert first.variance == pytest.approx(direct.var(correction=0).item(), rel=1e-5)
    assert first.survival == pytest.approx((direct > 0).double().mean().item(), abs=1e-6)
    assert first.dead == 0


def test_dead_units_are_counted():
    net = chain(1)
    net[1].bias.data[:4] = -100.0
    assert diagnose(net, pictures(), **CHEAP).layers[0].dead == 0.25


def test_identity_is_read_back_and_noise_is_not():
    """ReLU of (x, -x) loses nothing; a layer that draws noise keeps nothing, and CKA agrees."""

    class Pair(nn.Module):
        def forward(self, x):
            torch.cat([x, -x], 1).relu()
            return torch.randn(len(x), 6, 8, 8).relu()

    found = diagnose(Pair(), pictures(64), **(CHEAP | {"decoder": Decoder(grid=8, features=64), "draws": 8}))
    kept, lost = found.layers
    assert kept.r2.value > 0.9999
    assert kept.psnr.value > kept.psnr.edge + 40
    assert kept.ssim.value > 0.9999
    assert not lost.r2.above_noise
    assert lost.cka.value < 0.2 < 0.8 < kept.cka.value
    assert kept.r2.edge < 0.2
    assert found.crossing("cka") == 2
    assert found.crossing("r2") == 2


def test_the_scale_of_features_does_not_matter():
    """Deep nets without norm vanish: squares of 1e-25 are nothing in single precision."""

    class Scaled(nn.Module):
        def forward(self, x):
            shifted = torch.cat([x, -x], 1) + 0.3
            return [(shifted * scale).relu() for scale in (1.0, 1e-25, 1e12)]

    first, *others = (layer.row() for layer in diagnose(Scaled(), pictures(), gradient=False, **CHEAP).layers)
    for layer in others:
        for measure in ("r2", "r2_high", "psnr", "ssim", "cka", "effective_rank"):
            assert layer[measure] == pytest.approx(first[measure], rel=1e-3, abs=1e-3), measure


def test_depth_dissipates_in_the_plain_chain_and_growth_is_theory():
    found = diagnose(chain(24), pictures(32), decoder=Decoder(grid=4), draws=3, batch_size=32, pictures=2)
    r2 = [layer.r2.value for layer in found.layers]
    assert r2[0] > 0.85 > 0.1 > r2[-1]
    assert found.layers[0].cka.value > 0.8 > 0.3 > found.layers[-1].cka.value
    assert 1.211**23 / 3 < found.gradient_growth < 1.211**23 * 3
    assert found.layers[5].theory == "normalised"
    assert found.layers[5].theory_growth == pytest.approx(1.2112, abs=1e-3)


def test_theory_of_a_plain_chain_within_three_standard_errors():
    """Zero padding counted: leaving it out would put the variance several errors off in most layers."""
    found = diagnose(chain(20, width=48, norm=False), pictures(), gradient=False, **CHEAP)
    assert all(layer.theory == "plain" for layer in found.layers)
    assert sum(layer.agrees for layer in found.layers) >= 18  # three errors in three measures: nearly all
    assert all(layer.survival >= layer.bound for layer in found.layers)


def test_theory_of_residual_and_layer_norm():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = nn.Linear(256, 256, bias=False), nn.LayerNorm(256)
            nn.init.kaiming_normal_(self.body.weight)

        def forward(self, x):
            x = F.relu(x + self.body(x))
            return F.relu(self.norm(x))

    torch.manual_seed(0)
    first, second = diagnose(Block(), torch.rand(32, 256) + 0.2, **CHEAP).layers
    mean, q = 0.7, 0.49 + 1 / 12
    assert first.theory == "residual"
    assert first.theory_mean == pytest.approx(mean, abs=0.01)
    assert first.theory_variance == pytest.approx(1 / 12 + 2 * q, rel=0.03)
    assert abs(first.variance / first.theory_variance - 1) < 0.25
    assert second.theory == "normalised"
    assert "per sample" in second.caveat


def test_overwritten_input_has_no_theory():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return torch.tanh(self.conv(x).cumsum(1))

    (layer,) = diagnose(InPlace(), pictures(), **CHEAP).layers
    assert layer.agrees is None
    assert "no row" in layer.caveat


def state_of(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    return tensors, [m.training for m in model.modules()], hooks, [p.grad for p in model.parameters()]


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])


@pytest.mark.parametrize("training", [None, True, False])
def test_model_is_left_as_found(training):
    net, x = chain(3), pictures()
    net[1].eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    net[0].weight.requires_grad_(True)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    grad = net[0].weight.grad
    before, random, kept = state_of(net), torch.get_rng_state(), x.clone()
    found = diagnose(net, x, training=training, **CHEAP)
    assert_same(before, state_of(net))
    assert net[0].weight.grad is grad
    assert torch.equal(grad, torch.ones_like(grad))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert found.layers[0].gradient > 0  # frozen parameters hide nothing


class Breaks(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        self.inner(x)
        raise KeyError("third shelf")


def test_model_that_raises_is_named_and_left_as_found():
    from torch.nn.modules import module as hooks

    net = Breaks(chain(2))
    before, random = state_of(net), torch.get_rng_state()
    counts = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    with pytest.raises(RunError, match=r"Breaks raised .*inner.*KeyError.*third shelf"):
        diagnose(net, pictures(), **CHEAP)
    assert_same(before, state_of(net))
    assert torch.equal(random, torch.get_rng_state())
    assert counts == (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks))
    assert torch.overrides._get_current_function_mode() is None


def test_deterministic_and_streamed_in_any_batch_size():
    net = chain(3, norm=False)
    one, same = (diagnose(net, pictures(32), gradient=False, **CHEAP).rows() for _ in range(2))
    assert repr(one) == repr(same)
    whole = diagnose(net, pictures(32), gradient=False, **(CHEAP | {"batch_size": 32})).rows()
    for few, many in zip(one, whole, strict=True):
        for key in ("survival", "mean", "variance", "r2", "effective_rank"):
            assert few[key] == pytest.approx(many[key], abs=1e-3), key


def test_iterables_integers_and_wrappers():
    net, x = chain(2), (pictures(24).sigmoid() * 255).to(torch.uint8)
    direct = diagnose(net, x.float() / 255, **CHEAP)
    labelled = diagnose(nn.DataParallel(net), [(x[:10], 0), (x[10:], 1)], **CHEAP)
    compiled = diagnose(torch.compile(net), x, **CHEAP)
    assert repr(direct.rows()[1:]) == repr(labelled.rows()[1:]) == repr(compiled.rows()[1:])


def test_tokens_vectors_and_half_precision():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()  # its fused path would hide the relu

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.encoder = nn.Conv2d(3, 16, 4, 4), encoder

        def forward(self, x):
            return self.encoder(self.patch(x).flatten(2).transpose(1, 2))

    (layer,) = diagnose(Tokens(), pictures(), **CHEAP).layers
    assert (layer.op, layer.shape) == ("relu", (32, 16))
    mlp = nn.Sequential(nn.Linear(12, 32), nn.ReLU()).bfloat16()
    (layer,) = diagnose(mlp, torch.randn(256, 12), **CHEAP).layers  # 32 features: fewer images cannot fit the decoder
    assert layer.r2.value > 0.8 > 0.1 > layer.r2.edge


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(3, 16, 16), "a single image is"),
        (torch.randn(1, 3, 16, 16), "at least 8"),
        (torch.full((8, 3, 16, 16), torch.nan), "NaN or infinite"),
        (torch.ones(8, 3, 16, 16), "all images are the same"),
        ([], "not empty"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(UsageError, match=message):
        diagnose(chain(1), images, **CHEAP)


def test_wrong_shape_names_the_layer():
    with pytest.raises(RunError, match=r"raised in or after '0' on images \[8, 4, 16, 16\]"):
        diagnose(chain(1), torch.randn(8, 4, 16, 16), **CHEAP)


def test_non_finite_activation_is_named():
    net = chain(3, norm=False)
    net[2].weight.data[0] = torch.inf
    with pytest.raises(RunError, match="activation '3'"):
        diagnose(net, pictures(), **CHEAP)


def test_no_activation_and_bad_settings():
    with pytest.raises(UsageError, match="no activation function ran inside Linear"):
        diagnose(nn.Linear(4, 2), torch.randn(8, 4), **CHEAP)
    with pytest.raises(UsageError, match="batch_size = 4"):
        diagnose(chain(1), pictures(), batch_size=4)


class Frugal(torch.autograd.Function):
    """A relu inside an autograd function of the model's own."""

    @staticmethod
    def forward(x):
        return (x + 0).relu_()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0] > 0)


def test_gradient_at_an_activation_inside_an_autograd_function():
    class Net(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 8, 3), act

        def forward(self, x):
            return self.act(self.conv(x))

    torch.manual_seed(0)
    net, x = Net(Frugal.apply), pictures()
    (inside,) = diagnose(net, x, **CHEAP).layers
    net.act = F.relu
    (outside,) = diagnose(net, x, **CHEAP).layers
    assert inside.gradient == pytest.approx(outside.gradient)
    assert inside.survival == outside.survival


def test_a_model_without_a_gradient_is_still_diagnosed():
    class Blind(nn.Module):
        def forward(self, x):
            with torch.no_grad():
                return x.relu()

    (layer,) = diagnose(Blind(), pictures(), **CHEAP).layers
    assert layer.gradient != layer.gradient


def test_models_without_change_compare_equal_after_diagnosis():
    net = chain(2)
    twin, x = copy.deepcopy(net), pictures()
    diagnose(net, x, **CHEAP)
    assert torch.equal(net(x), twin(x))


class Noise(nn.Module):
    """Twenty activations of noise that never see the input."""

    def __init__(self):
        super().__init__()
        self.scale, self.acts = nn.Parameter(torch.ones(1)), nn.ModuleList(nn.ReLU() for _ in range(20))

    def forward(self, x):
        for act in self.acts:
            y = act(torch.randn(len(x), 16, 4, 4) * self.scale)
        return y


class Same(nn.Module):
    """Twenty activations that change nothing: images have no value below 0."""

    def forward(self, x):
        for _ in range(20):
            x = x.relu()
        return x


@pytest.mark.parametrize(("net", "depth"), [(Noise(), 1), (Same(), None)])
def test_many_layers_do_not_make_noise_look_like_information(net, depth):
    cheap = {"decoder": Decoder(grid=2, features=8), "pictures": 0, "gradient": False, "batch_size": 24, "draws": 6}
    found = [diagnose(net, torch.rand(24, 3, 8, 8), seed=seed, **cheap).dissipation_depth for seed in range(5)]
    assert found.count(depth) >= 4


def test_dim_images_have_a_cka_between_minus_one_and_one():
    net = chain(2, norm=False)
    for scale in (1e-30, 1e-12, 1.0):
        for layer in diagnose(net, pictures() * scale, gradient=False, **CHEAP).layers:
            assert abs(layer.cka.value) <= 1
            assert abs(layer.cka.edge) < 10


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.rand(16, 3, 16, 16, dtype=torch.complex64), {}, "complex"),
        ([torch.rand(8, 3, 16, 16), torch.rand(8, 3, 8, 8)], {}, "one size"),
        (pictures(), {"pictures": -1}, "0 or more"),
    ],
)
def test_images_and_settings_that_mean_nothing_are_refused(images, options, message):
    with pytest.raises(UsageError, match=message):
        diagnose(chain(1), images, **(CHEAP | options))


def test_inference_mode_outside_does_not_hide_the_gradient():
    net = chain(1)
    with torch.inference_mode():
        assert diagnose(net, pictures(), **CHEAP).layers[0].gradient > 0


SEEN = {
    "atan": torch.atan,
    "pow": lambda x: x**3,
    "square": lambda x: x * x,
    "clamp": lambda x: x.clamp(-1, 1),
    "relu": lambda x: torch.clamp_min(x, 0),
    "maximum": lambda x: torch.maximum(x, torch.zeros(1)),
    "max": lambda x: torch.max(x, torch.zeros(1)),
    "exp": torch.exp,
    "expit": torch.special.expit,
    "abs": abs,
}


@pytest.mark.parametrize("name", SEEN)
def test_what_the_certificate_counts_is_seen(name):
    class Net(nn.Module):
        def forward(self, x):
            return SEEN[name](x)

    (layer,) = diagnose(Net(), pictures(), **CHEAP).layers
    assert layer.op == name
    assert layer.bytes == 4 * 3 * 16 * 16


def test_what_no_row_measures_is_named():
    class Net(nn.Module):
        def forward(self, x):
            return x.relu().sort(dim=1).values.amax(1) * (x > 0).any(1)

    found = diagnose(Net(), pictures(), **CHEAP)
    assert [layer.op for layer in found.layers] == ["relu"]
    assert set(found.not_seen) >= {"sort", "amax"}
    assert "not seen: " in repr(found)


def test_a_diagnosis_shows_itself():
    found = diagnose(chain(3), pictures(), name="a<b", **CHEAP)
    assert repr(found).startswith("<Dissipation of a<b: 3 activations, R2 ")
    page = found._repr_html_()
    assert "a&lt;b" in page
    assert page.count("data:image/png") == 2 * (1 + 3)
    assert page.count("<tr>") == 3 + 1 + 3
    axes = found.plot()
    assert [len(line.get_xdata()) for line in axes.lines] == [3]
