"""Plain layers: the equations, initial values, sharing, geometry, and that whatever walks a model works on them."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pnnh import analysis, layers
from pnnh.layers.init import dirac_, he_normal_, orthogonal_

FORMS = [layers.AlternatingStage, layers.PipelinedStage]
CODERS = [layers.LearnedCoder(), layers.FrozenDirac(), layers.FrozenOrthogonal(), layers.PerLayerCoder()]


def stage(form=FORMS[0], num_layers=6, stride=1, **options):
    torch.manual_seed(0)
    return form(3, 8, 4, num_layers, stride=stride, options=layers.PlainOptions(**options))


def images(size=10):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", FORMS)
def test_number_of_activations_in_series_is_the_number_of_layers(form):
    """The first and the last stream value are `num_layers` activations apart on every path: count the calls."""
    net, calls = stage(form, num_layers=8), []
    for module in net.modules():
        if isinstance(module, layers.Write):
            module.register_forward_hook(lambda *_: calls.append("write"))
        if isinstance(module, layers.Learn):
            module.register_forward_hook(lambda *_: calls.append("learn"))
    net(images())
    assert len(calls) == 7  # and the transition is the eighth
    assert calls[-1] == "write"


@pytest.mark.parametrize("form", FORMS)
def test_the_coder_is_owned_once_and_used_by_every_write(form):
    net = stage(form, num_layers=8)
    kernels = [p for name, p in net.named_parameters() if name.startswith("coders")]
    assert len(kernels) == 1
    seen = []
    for module in net.modules():
        if isinstance(module, layers.CoderConv):
            module.register_forward_hook(lambda _m, args, _o: seen.append(args[1]))
    net(images()).sum().backward()
    assert len(seen) == (3 if form is layers.AlternatingStage else 7)
    assert all(kernel is kernels[0] for kernel in seen)
    assert kernels[0].grad.abs().sum() > 0


def test_the_coder_gradient_is_the_sum_over_its_uses():
    shared, apart = stage(coder=layers.LearnedCoder()), stage(coder=layers.PerLayerCoder())
    for coder in apart.coders:
        coder.weight.data.copy_(shared.coders[0].weight)
    apart.load_state_dict(shared.state_dict() | {k: v for k, v in apart.state_dict().items() if k.startswith("coders")})
    for net in (shared.double(), apart.double()):
        net(images().double()).square().sum().backward()
    total = sum(coder.weight.grad for coder in apart.coders)
    torch.testing.assert_close(shared.coders[0].weight.grad, total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("coder", CODERS)
def test_coder_choices_say_what_is_learned(coder):
    net = stage(coder=coder)
    learned = [name for name, _ in net.named_parameters() if name.startswith("coders")]
    expected = {layers.LearnedCoder: 1, layers.PerLayerCoder: 2}.get(type(coder), 0)
    assert len(learned) == expected
    assert hasattr(net.coders[0], "lr_scale") == isinstance(coder, layers.LearnedCoder)
    assert "coders.0.weight" in net.state_dict()
    assert torch.isfinite(net(images())).all()


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "coder_kernel_size": 3},
        {"kernel_size": 5},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "circular"},
        {"padding_mode": "reflect"},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS)
def test_geometries_keep_the_size(form, geometry):
    assert stage(form, **geometry)(images()).shape == (2, 8, 10, 10)
    assert stage(form, stride=2, **geometry)(images()).shape == (2, 8, 5, 5)


def test_circular_padding_is_equivariant_to_shifts():
    net = stage(padding_mode="circular").eval()
    x = images()
    moved = net(x.roll((3, 2), (2, 3)))
    torch.testing.assert_close(moved, net(x).roll((3, 2), (2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [layers.Learn, layers.Deepen])
def test_the_stream_crosses_its_activation_as_plain_autograd_would(kind):
    """Outputs and gradients bit by bit, and no tensor kept but c, which a learner that reads it keeps as well."""
    torch.manual_seed(0)
    learn, f = kind(8, 4).train(), torch.randn(2, 4, 5, 5)
    nn.init.normal_(learn.shift)
    c, grad = torch.randn(2, 8, 5, 5).relu_().requires_grad_(), torch.randn(2, 8, 5, 5)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        ours = learn(f, c)[1]
    assert set(kept) >= {c.data_ptr()}
    assert ours.data_ptr() not in kept
    plain = F.relu(c + learn.shift.view(-1, 1, 1))
    assert torch.equal(ours, plain)
    wanted = torch.autograd.grad(plain, (c, learn.shift), grad)
    for got, want in zip(torch.autograd.grad(ours, (c, learn.shift), grad), wanted, strict=True):
        assert torch.equal(got, want)


def test_a_probe_in_training_sees_activations_with_their_gradients():
    seen = []
    net = stage().train()
    with analysis.probe(net, seen.append):
        net(images())
    assert len(seen) == 4 * 2 + 2  # the transition and three learners, with the streams beside them, and two writes
    assert all(call.after.requires_grad for call in seen)


def test_the_stream_stays_in_the_arithmetic_of_autocast():
    net = stage().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f, c = net.transition(images())
        assert net.layers[0](f, c)[1].dtype == c.dtype == torch.bfloat16
        assert net(images()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("learns", "num_layers", "sizes"),
    [
        (1, 6, [2, 2, 2]),
        (2, 6, [3, 3]),
        (2, 10, [3, 3, 2, 2]),
        (2, 4, [2, 2]),
        (2, 2, [2]),
        (2, 5, [3, 2]),
        (3, 8, [4, 4]),
    ],
)
def test_layers_are_shared_out_between_writes(learns, num_layers, sizes):
    net = stage(num_layers=num_layers, learns=learns)
    kinds = "".join(type(layer).__name__[0] for layer in net.layers)
    assert "L" + kinds == "".join("L" + "D" * (size - 2) + "W" for size in sizes)  # the transition learns first


def test_a_layer_deepens_what_was_just_learned():
    torch.manual_seed(0)
    deepen, f, c = layers.Deepen(8, 4).eval(), torch.randn(2, 4, 5, 5), torch.randn(2, 8, 5, 5)
    nn.init.normal_(deepen.shift)
    features, stream = deepen(f, c)
    torch.testing.assert_close(features, F.relu(deepen.norm(F.conv2d(f, deepen.conv.weight, padding=1))))
    torch.testing.assert_close(stream, F.relu(c + deepen.shift.view(-1, 1, 1)))


def test_even_kernels_odd_depths_and_misfit_groups_are_refused():
    with pytest.raises(ValueError, match="kernel_size 4 must be odd"):
        stage(kernel_size=4)
    with pytest.raises(ValueError, match="num_layers 5 cannot be split into groups of 2 to 2"):
        stage(num_layers=5, learns=1)
    for num_layers in (0, 1):
        with pytest.raises(ValueError, match=f"num_layers {num_layers} cannot be split into groups of 2 to 3"):
            stage(num_layers=num_layers)
    with pytest.raises(ValueError, match="learns 0 must be at least 1"):
        stage(learns=0)
    with pytest.raises(ValueError, match="groups 3 must divide"):
        stage(groups=3)


def test_he_normal_variance_and_dirac_copy():
    kernel = he_normal_(torch.empty(64, 32, 3, 3), gain=0.5)
    assert kernel.std().item() == pytest.approx(0.5 * (2 / (64 * 9)) ** 0.5, rel=0.03)
    x = images(6)[:, :2]
    copied = F.conv2d(x, dirac_(torch.empty(5, 2, 3, 3), gain=2.0), padding=1)
    torch.testing.assert_close(copied, 2 * x[:, [0, 1, 0, 1, 0]])
    flat = orthogonal_(torch.empty(4, 8, 3, 3)).flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_channels_last_bf16_autocast_and_deepcopy(form):
    net = stage(form)
    expected = net(images())
    fast = copy.deepcopy(net).to(memory_format=torch.channels_last)
    out = fast(images().contiguous(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(images())
    assert (low.float() - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("form", FORMS)
def test_export_and_safetensors(form, tmp_path):
    from safetensors.torch import load_model, save_model

    net = stage(form).eval()
    program = torch.export.export(net, (images(),))
    torch.testing.assert_close(program.module()(images()), net(images()))
    save_model(net, tmp_path / "stage.safetensors")
    other = stage(form, coder=layers.LearnedCoder())
    nn.init.zeros_(other.coders[0].weight)
    load_model(other.eval(), tmp_path / "stage.safetensors")
    torch.testing.assert_close(other(images()), net(images()))


def test_torch_compile_captures_the_whole_stage():
    net = stage().eval()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), net(images()))


def test_a_compiled_step_keeps_no_boolean_per_unit_and_has_the_eager_gradients():
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    kept: list[torch.dtype] = []

    def look(graph: torch.fx.GraphModule, _):
        (output,) = graph.graph.find_nodes(op="output")
        kept.extend(node.meta["val"].dtype for node in output.args[0] if isinstance(node, torch.fx.Node))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=look,
        bw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
        decompositions=select_decomp_table(),
    )
    net = stage(num_layers=12)
    gradients = []
    for run in (net, torch.compile(net, backend=backend, fullgraph=True)):
        net.zero_grad()
        run(images()).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    assert kept.count(torch.float32) > 12
    assert kept.count(torch.bool) <= 1  # of the stage's output, which in a net the next layer keeps


def test_a_learned_coder_starts_where_it_is_told():
    for start, frozen in (("dirac", layers.FrozenDirac()), ("orthogonal", layers.FrozenOrthogonal())):
        kernels = []
        for choice in (layers.LearnedCoder(start=start), frozen):
            torch.manual_seed(0)
            (coder,) = stage(coder=choice).coders
            kernels.append(coder.weight)
        assert isinstance(kernels[0], torch.nn.Parameter)
        torch.testing.assert_close(kernels[0].detach(), kernels[1])
    with pytest.raises(ValueError, match="start 'zero' of the coder must be one of he, dirac, orthogonal"):
        stage(coder=layers.LearnedCoder(start="zero"))


def test_shift_starts_the_learners_norms_and_gain_scales_the_coder():
    net = stage(shift=1.25)
    learners = [module for module in net.layers if not isinstance(module, layers.Write)]
    assert len(learners) == 3
    assert all(torch.equal(learn.norm.bias, torch.full((4,), 1.25)) for learn in learners)
    for coder in CODERS:
        loud, quiet = stage(coder=coder, gain=1.0), stage(coder=coder, gain=0.2)
        torch.testing.assert_close(quiet.coders[0].weight, 0.2 * loud.coders[0].weight)


def test_distributed_data_parallel_reduces_every_parameter(tmp_path):
    """One process is enough to see unused or twice-reduced parameters: DDP raises on both."""
    import torch.distributed as dist

    torch.manual_seed(0)
    alone, wrapped = stage(), stage()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(wrapped)
        for net in (alone, parallel):
            net(images()).square().sum().backward()
    finally:
        dist.destroy_process_group()
    for a, b in zip(alone.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_depth_solved_shift_raises_survival_of_the_learners():
    """At initialisation a normed learner with bias b survives with probability Phi(b)."""
    from pnnh.theory import solve_shift

    shift = solve_shift(56, 1.0)
    net = stage(shift=shift, num_layers=8)
    alive = []
    for learn in (module for module in net.layers if not isinstance(module, layers.Write)):
        learn.register_forward_hook(lambda _m, _i, out: alive.append((out[0] > 0).float().mean().item()))
    net(torch.randn(32, 3, 16, 16))
    expected = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(shift)).item()
    assert alive == pytest.approx([expected] * 4, abs=0.03)


@pytest.mark.parametrize(("num_layers", "num_writes"), [(2, 1), (6, 2), (18, 6)])
def test_the_rate_of_a_shared_coder_falls_with_the_square_of_its_uses(num_layers, num_writes):
    net = stage(num_layers=num_layers)
    assert sum(isinstance(module, layers.Write) for module in net.modules()) == num_writes
    assert net.coders[0].lr_scale == pytest.approx(num_writes**-2)
    assert stage(num_layers=num_layers, coder=layers.LearnedCoder(0.5)).coders[0].lr_scale == 0.5
