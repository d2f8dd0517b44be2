"""What a rebuild must not change: outputs of the small nets, certificates, exported operators, a row of `compare`.

A change on purpose is written with `python tests/house/test_golden.py` and named in the CHANGELOG.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import pnnh.models  # noqa: F401
from pnnh.certify import certify
from pnnh.compare import Comparison, run
from pnnh.convert import convert, export
from pnnh.data import load_data
from pnnh.train import Recipe

FOLDER = Path(__file__).parents[1] / "golden"
NETS = [
    "cifar_diracnet_tiny",
    "cifar_isonet_tiny",
    "cifar_repvgg_tiny",
    "cifar_resnet_tiny",
    "cifar_tatnet_tiny",
    "plain_resnet_tiny",
    "pnnh_resnet_tiny",
    "plain_resnet_test",
    "pnnh_resnet_test",
    "cutskip_vit_test_patch4_16",
    "plain_vit_test_patch4_16",
    "pnnh_vit_test_patch4_16",
]
EXPORTS = [("pnnh_resnet_tiny", "chain"), ("pnnh_resnet_tiny", "structured"), ("cifar_resnet_tiny", "structured")]
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def net_of(name: str) -> torch.nn.Module:
    """The net with the weights of seed 0, its norms' statistics from one batch, in eval mode."""
    torch.manual_seed(0)
    net = timm.create_model(name)
    with torch.no_grad():
        net.train()(images_of(net).float())
    return net.eval()


def images_of(net: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, *net.pretrained_cfg["input_size"], generator=generator, dtype=torch.float64)


def net_facts(name: str) -> dict[str, Any]:
    """Size and first logits in train mode, in float64: these follow from the initial weights and the equation."""
    torch.manual_seed(0)
    net = timm.create_model(name).double().train()
    with torch.no_grad():
        outputs = net(images_of(net))
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "logits": outputs[:2, :3].flatten().tolist(),
        "spread": float(outputs.std()),
    }


def certificate_facts(name: str) -> dict[str, Any]:
    net = net_of(name)
    found = certify(net, images_of(net).float())
    return {"plain": found.plain, "activations": found.num_activations, "joins": len(found.joins)}


def export_facts(name: str, form: str) -> dict[str, Any]:
    net = net_of(name)
    with tempfile.TemporaryDirectory() as folder:
        done = export(net, images_of(net).float(), Path(folder) / "net.onnx", form=form)
    return {"operators": done.op_types, "plain": done.plain, "chain": done.chain}


def twin_facts() -> dict[str, Any]:
    net = net_of("cifar_resnet_tiny")
    twin, _ = convert(net, images_of(net).float(), form="structured")
    found = certify(twin, images_of(net).float())
    return {"plain": found.plain, "parameters": sum(parameter.numel() for parameter in twin.parameters())}


def row_facts() -> dict[str, Any]:
    """One net, one epoch on 64 digits of 8 x 8 pixels."""
    recipe = Recipe(epochs=1, batch_size=32)
    plan = Comparison(recipe, methods=("pnnh",), depths=(8,), recipe_name="default")
    data = load_data("digits", image_size=8, limit=64)
    with tempfile.TemporaryDirectory() as folder:
        (row,) = run(plan, data, device="cpu", out=Path(folder))
    exact = {key: row[key] for key in ("method", "depth", "seed", "num_params", "macs", "lr")}
    return exact | {"loss": row["curve"][-1]["loss"], "survival_at_init": row["survival_at_init"]}


FACTS = {f"net {name}": lambda name=name: net_facts(name) for name in NETS}
FACTS |= {f"certificate {name}": lambda name=name: certificate_facts(name) for name in NETS}
FACTS |= {"twin structured": twin_facts, "compare row": row_facts}
FACTS |= {f"export {name} {form}": lambda pair=(name, form): export_facts(*pair) for name, form in EXPORTS}


@pytest.mark.parametrize("fact", FACTS)
def test_it_is_what_it_was(fact):
    if fact.startswith("export") and not HAS_ONNX:
        pytest.skip("the packages of the export extra are not installed")
    assert FACTS[fact]() == close_to(json.loads(path_of(fact).read_text())[fact])


def test_the_golden_files_hold_these_facts_and_no_other():
    assert {fact for file in FOLDER.glob("*.json") for fact in json.loads(file.read_text())} == FACTS.keys()


def close_to(value: Any) -> Any:
    """The value, with numbers equal up to the rounding of single precision on another processor."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-4, abs=1e-6)
    if isinstance(value, dict):
        return {key: close_to(item) for key, item in value.items()}
    return [close_to(item) for item in value] if isinstance(value, list) else value


def path_of(fact: str) -> Path:
    return FOLDER / f"{fact.split()[0]}.json"


def regenerate() -> None:
    """Write every golden file anew."""
    for file in sorted({path_of(fact) for fact in FACTS}):
        facts = {fact: make() for fact, make in FACTS.items() if path_of(fact) == file}
        file.write_text(json.dumps(facts, indent=1) + "\n")
        print(f"wrote {file}", file=sys.stderr)


if __name__ == "__main__":
    regenerate()
