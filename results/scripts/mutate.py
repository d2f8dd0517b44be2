"""Would the tests notice? Small faults, one at a time, in code that must be right. Writes results/mutation.json.

    python results/scripts/mutate.py [--mutants 60] [--seed 0] [--seconds 60]

A mutant is one changed operator, comparison, constant, condition or dropped statement. The tests of its file run
against it in a forked child; it is killed if one fails or the child needs more than --seconds of processor time, and it
survives if all pass. Survivors are printed with their line: each is a missing test, or a change that changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.machinery
import json
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = {  # what is mutated, and the tests that should notice
    "pnnh.layers.fold": ["tests/test_properties.py", "-k", "fold or fuse"],
    "pnnh.convert.fuse": ["tests/test_properties.py", "tests/test_fuse_export.py", "-k", "fuse or refus or fold"],
    "pnnh.train.checkpoint": [
        "tests/test_train_checkpoint.py",
        "tests/test_properties.py",
        "-k",
        "not stage and not fuse",
    ],
    "pnnh.train.store": ["tests/test_train_loop.py", "-k", "resum or folder or damaged or finished or sigterm or kept"],
}
COMPARE = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """Change number `site` of `module`. `was` and `now` are the code of the changed part."""

    module: str
    site: int
    line: int
    was: str
    now: str


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may stand in the place of `node`."""
    new = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        new.ops[0] = COMPARE[type(node.ops[0])]()
        yield new
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        new.op = ARITHMETIC[type(node.op)]()
        yield new
    elif isinstance(node, ast.BoolOp):
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield new
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse


class _Change(ast.NodeTransformer):
    """Makes change number `site`, counting in one fixed order; with no site it only lists them."""

    def __init__(self, site: int | None = None) -> None:
        self.site, self.found = site, []

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.arguments, ast.AnnAssign)):  # defaults and annotations of signatures
            return node
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        result = node
        for new in changes(node):
            if len(self.found) == self.site:
                result = ast.copy_location(new, node)
            self.found.append((node.lineno, ast.unparse(node), ast.unparse(new)))
        return ast.fix_missing_locations(result) if result is not node else self.generic_visit(node)


def mutants_of(module: str) -> list[Mutant]:
    listing = _Change()
    listing.visit(ast.parse(path_of(module).read_text()))
    return [Mutant(module, site, *what) for site, what in enumerate(listing.found)]


def mutated(mutant: Mutant) -> ast.Module:
    return ast.fix_missing_locations(_Change(mutant.site).visit(ast.parse(path_of(mutant.module).read_text())))


def path_of(module: str) -> Path:
    return ROOT / "src" / Path(*module.split(".")).with_suffix(".py")


def tested(module: str, tree: ast.Module | None, seconds: int) -> str:
    """ "survived", "killed" or "timed out": the tests of `module` in a child where its code is `tree`."""
    child = os.fork()
    if child == 0:
        os._exit(_run_tests(module, tree, seconds))
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "timed out" if os.WTERMSIG(status) == 24 else "killed"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def _run_tests(module: str, tree: ast.Module | None, seconds: int) -> int:
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1), os.dup2(silent, 2)
    ordinary = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader, name):
        return compile(tree, str(path_of(module)), "exec") if name == module else ordinary(loader, name)

    if tree is not None:
        importlib.machinery.SourceFileLoader.get_code = get_code
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0"]
    return int(pytest.main([*options, "-W", "ignore::pytest.PytestAssertRewriteWarning", *TESTS[module]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("mutants", 60), ("seed", 0), ("seconds", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "src"))
    for name in ("torch", "timm", "hypothesis", "pytest", "timm.optim", "timm.scheduler", "timm.utils"):
        importlib.import_module(name)  # once, before the forks; nothing of ours
    assert not [name for name in sys.modules if name.split(".")[0] == "pnnh"]
    every = {module: mutants_of(module) for module in TESTS}
    draw, each = random.Random(chosen.seed), chosen.mutants // len(TESTS)
    sample = [mutant for mutants in every.values() for mutant in draw.sample(mutants, min(each, len(mutants)))]
    for module in TESTS:
        assert tested(module, None, 4 * chosen.seconds) == "survived", f"the tests of {module} fail without a mutation"
    rows, start = [], time.monotonic()
    for mutant in sample:
        rows.append(asdict(mutant) | {"fate": tested(mutant.module, mutated(mutant), chosen.seconds)})
        if rows[-1]["fate"] == "survived":
            print(f"survived: {mutant.module}:{mutant.line}  {mutant.was[:90]}  ->  {mutant.now[:90]}", flush=True)
    write(rows, every, chosen, time.monotonic() - start)


def write(rows: list[dict], every: dict[str, list[Mutant]], chosen: argparse.Namespace, seconds: float) -> None:
    from pnnh.train import checkpoint, record

    table = []
    for module, mutants in every.items():
        fates = Counter(row["fate"] for row in rows if row["module"] == module)
        table.append({"module": module, "possible": len(mutants), "tried": sum(fates.values()), **fates})
    result = {"summary": table, "mutants": rows, "seed": chosen.seed, "seconds": seconds, "tests": TESTS}
    result |= record.environment("cpu") | {"command": "python results/scripts/mutate.py"}
    checkpoint.write_bytes(ROOT / "results" / "mutation.json", (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
