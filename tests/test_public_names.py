"""`import pnnh`: free, lazy, complete; packages that are verbs can be called, whichever name was imported first."""

import subprocess
import sys

import pytest
import torch

import pnnh


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import pnnh; pnnh.__version__; print(*set(sys.modules) - before)"
    loaded = {name.split(".")[0] for name in python(code).split()}
    assert loaded <= {"pnnh", *sys.stdlib_module_names}


def test_every_public_name_is_there_and_no_other():
    for name in pnnh.__all__:
        assert getattr(pnnh, name) is not None
        assert name in dir(pnnh)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pnnh.nothing


def test_names_stand_for_the_objects_at_home():
    from pnnh.analysis import diagnose
    from pnnh.train import Recipe

    assert pnnh.diagnose is diagnose
    assert pnnh.Recipe is Recipe
    assert "pnnh_resnet56" in pnnh.create_model.__globals__["is_model"].__globals__["_model_entrypoints"]


@pytest.mark.parametrize("verb", ["certify", "convert", "train"])
def test_a_verb_is_a_package_and_a_function_at_once(verb):
    package = getattr(pnnh, verb)
    assert package is sys.modules[f"pnnh.{verb}"]
    assert callable(package)
    assert callable(getattr(package, verb))
    with pytest.raises(TypeError, match=rf"{verb}\(\) missing"):
        package()


def test_the_verb_survives_imports_in_any_order():
    orders = [
        "from pnnh import certify",
        "import pnnh.certify; from pnnh import certify",
        "import pnnh.certify.trace as inner; from pnnh import certify; assert inner.trace",
        "from pnnh.certify import certify as function; from pnnh import certify",
        "from pnnh import certify; import pnnh.certify.grading; import pnnh; assert pnnh.certify is certify",
    ]
    use = "assert callable(certify) and certify.Certificate"
    fresh = "import sys; [sys.modules.pop(name) for name in [*sys.modules] if name.split('.')[0] == 'pnnh']"
    python("\n".join(line for order in orders for line in (fresh, order, use)))


def test_the_certificate_through_either_name_is_the_same():
    net, x = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU()), torch.zeros(2, 3)
    assert pnnh.certify(net, x) == pnnh.certify.certify(net, x)
