"""`import pnnh`: free, lazy, complete; verbs are functions, whichever package of the same name was imported first."""

import ast
import importlib
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("verb", ["bench", "certify", "convert", "train"])
def test_a_verb_is_a_function_though_a_package_has_its_name(verb):
    package = importlib.import_module(f"pnnh.{verb}")
    assert inspect.ismodule(package)
    assert getattr(pnnh, verb) is getattr(package, verb)
    assert inspect.isfunction(getattr(pnnh, verb))
    assert inspect.signature(getattr(pnnh, verb)).return_annotation is not inspect.Signature.empty
    assert pydoc.render_doc(getattr(pnnh, verb)).startswith(f"Python Library Documentation: function {verb}")


def test_the_verb_survives_imports_in_any_order():
    orders = [
        "from pnnh import train",
        "import pnnh.train; from pnnh import train",
        "from pnnh.train.recipe import SGD; from pnnh import train",
        "from pnnh.train import train as function; from pnnh import train; assert train is function",
        "from pnnh import train; import pnnh.train.groups; import pnnh; assert pnnh.train is train",
        "import pnnh; pnnh.load_data; train = pnnh.train",
    ]
    use = "from pnnh.train import SGD\nimport inspect\nassert 'recipe' in inspect.signature(train).parameters and SGD"
    fresh = "import sys; [sys.modules.pop(name) for name in [*sys.modules] if name.split('.')[0] == 'pnnh']"
    python("\n".join(line for order in orders for line in (fresh, order, use)))


def test_type_checkers_see_the_names_that_are_there():
    tree = ast.parse(Path(pnnh.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    homes = {alias.asname: node.module for node in block.body for alias in node.names}
    assert {name: home.removeprefix("pnnh.") for name, home in homes.items()} == pnnh._HOMES | {"theory": "pnnh"}
    assert homes.keys() | {"__version__"} == set(pnnh.__all__)
    assert (Path(pnnh.__file__).parent / "py.typed").is_file()
