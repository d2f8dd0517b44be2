"""The refusals of fuse, convert and export that the other files do not test: one line, the place, the way out."""

import sys

import pytest
import timm
import torch
from test_convert import with_statistics
from torch import nn
from torch.nn import functional as F

import pnnh.models  # noqa: F401
from pnnh._errors import RunError, UsageError
from pnnh.convert import affine, convert, export, fuse
from pnnh.convert.equivalence import Agreement, agreement
from pnnh.layers import PlainOptions

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """relu(conv(x)), then what `forward` says, run with the modules a, b, c."""

    def __init__(self, forward, a=None, b=None, c=None):
        super().__init__()
        self.stem, self.run, self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), forward, a, b, c

    def forward(self, x):
        return self.run(self, self.stem(x).relu())


def conv(**geometry):
    return nn.Conv2d(4, 4, **{"kernel_size": 3, "padding": 1} | geometry)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, 2 * self.weight, self.bias, padding=1)


def pool_and(*rest):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *rest)


NOT_DENSE = {
    "a: a convolution that is not square": Body(
        lambda m, x: m.b(m.a(x).relu()) + x, conv(kernel_size=(3, 1), padding=(1, 0)), conv()
    ),
    "a: (8, 8) -> (3, 3) is not a centred stride": Body(lambda m, x: m.a(x).relu(), conv(stride=2, padding=0)),
    "a: an average pooling that meets the border": Body(lambda m, x: m.b(m.a(x)).relu(), nn.AvgPool2d(3, 2, 1), conv()),
    "a: a pooled value is also used unpooled": Body(
        lambda m, x: m.b(m.a(x)).relu() + m.c(x).relu(), nn.MaxPool2d(2), conv(), conv(stride=2)
    ),
    "a: adaptive_avg_pool2d[2, 2] is no global average": Body(lambda m, x: m.a(x), nn.AdaptiveAvgPool2d(2)),
    "a.2: an activation after the global pooling": Body(lambda m, x: m.a(x), pool_and(nn.Softmax(1))),
    "a.3: an activation after the global pooling": Body(
        lambda m, x: m.a(x), pool_and(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    ),
    "one layer has the activations relu, silu": Body(lambda m, x: m.a(x).relu() + F.silu(m.b(x)), conv(), conv()),
    "b: two convolutions without an activation between": Body(lambda m, x: m.b(m.a(x)).relu(), conv(), conv()),
    "a: mul of constants is not folded": Body(lambda m, x: m.a(x).relu() + x, Scaled(4, 4, 3)),
}


def home(verb):
    """The module of a verb, which the verb's own name hides."""
    return sys.modules[f"pnnh.convert.{verb}"]


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("message", NOT_DENSE)
def test_what_no_chain_has_is_refused_with_its_place_and_the_other_form_takes_it(message):
    model = NOT_DENSE[message].eval()
    with pytest.raises(UsageError) as caught:
        convert(model, EXAMPLE, form="dense", dry_run=True)
    assert message in one_line(caught)
    assert "use the structured form" in str(caught.value)


def test_the_structured_form_takes_what_the_dense_one_refuses():
    _, report = convert(NOT_DENSE["a: a convolution that is not square"].eval(), EXAMPLE)
    assert report.agreement.relative_error <= 1e-12


def kernel(side=1, channels=2):
    return torch.ones(channels, channels, side, side, dtype=torch.float64)


def test_sums_and_stacks_of_two_states_or_strides_are_refused():
    first = affine.Affine(0, kernel())
    for other in (affine.Affine(1, kernel()), affine.Affine(0, kernel(), stride=2)):
        with pytest.raises(UsageError, match="here: one layer would read two states or strides"):
            first.plus(other, "here")
        with pytest.raises(UsageError, match="here: one layer would read two states or strides"):
            affine.stacked([first, other], "here")
    wide = first.plus(affine.Affine(0, kernel(3)), "here").kernel
    assert wide[0, 0].tolist() == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]


@pytest.mark.parametrize("inner", [{"kernel": kernel(3)}, {"kernel": kernel(), "stride": 2}, {"bias": torch.ones(2)}])
def test_a_wide_kernel_composes_only_with_a_bare_pointwise_one(inner):
    value = affine.Affine(**{"state": 0, "kernel": kernel()} | inner)
    with pytest.raises(UsageError, match="at the image border"):
        affine.composed(value, kernel(3), None, 1, "here")


def test_a_model_whose_python_reads_values_cannot_be_exported(tmp_path):
    model = Body(lambda m, x: x.relu() if float(x.sum()) > 0 else x)
    with pytest.raises(UsageError, match=r"torch.export cannot trace Body") as caught:
        export(model.eval(), EXAMPLE, tmp_path / "net.onnx")
    one_line(caught)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["chain", "structured"])
def test_activations_of_their_own_do_not_fold(form):
    def prelu(inplace):
        return nn.PReLU()

    model = timm.create_model("pnnh_resnet_tiny", options=PlainOptions(act=prelu)).eval()
    fused = fuse(with_statistics(model), form=form)
    left = dict(fused.fusion.left)
    assert left["stages.0"].startswith("a layer with the activations PReLU")
    assert "stages.0" not in fused.fusion.folded


def test_an_unknown_form_of_fusing_is_refused():
    with pytest.raises(UsageError, match="form 'thin' is not known; choose structured or chain"):
        fuse(nn.Linear(2, 2), form="thin")


# --- when a proof fails, nothing is handed out ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [2e-9, float("nan")])
def test_a_twin_that_is_not_proven_is_not_returned(monkeypatch, error):
    model = Body(lambda m, x: m.a(x).relu() + x, conv()).eval()
    monkeypatch.setattr(home("convert"), "compare", lambda *_: Agreement(error, 1.0, 4))
    with pytest.raises(RunError, match="the twin is not proven") as caught:
        convert(model, EXAMPLE)
    one_line(caught)


def test_a_file_that_disagrees_or_has_an_add_is_refused(monkeypatch, tmp_path):
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    monkeypatch.setattr(home("write"), "_write_onnx", lambda net, example, names, path: (18, {"Conv": 1, "Add": 1}))
    with pytest.raises(RunError, match=r"net.onnx has Add although the network is a bare chain"):
        export(model, EXAMPLE, tmp_path / "net.onnx")
    true = home("write").agreement
    monkeypatch.setattr(home("write"), "agreement", lambda a, b: true(a, [b[0] + 0.1]))
    with pytest.raises(RunError, match=r"net.pt2 disagrees: relative error"):
        export(model, EXAMPLE, tmp_path / "net.pt2")


def test_outputs_of_two_shapes_are_not_compared():
    with pytest.raises(RunError, match=r"outputs have shapes .*2, 3.* and .*2, 4"):
        agreement(torch.ones(2, 3), torch.ones(2, 4))
