"""Would the tests notice? Small faults, one at a time, in code that must be right. Writes results/mutation.json.

    python results/scripts/mutate.py [--mutants N] [--seed 0] [--seconds 60] [--survivors]

A mutant is one changed operator, comparison, constant, condition or dropped statement. The tests of its file run
against it in a forked child; it is killed if one fails or the child needs more than --seconds of processor time, and it
survives if all pass. They are tried in random order, one of each file in turn, all or the first N. Survivors are
printed with their line: each is a missing test, or a change that changes nothing. The latter are in EQUIVALENT, with
the reason, which is recorded.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import importlib.machinery
import json
import os
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from pathlib import Path

from _evidence import evidence

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "results" / "mutation.json"
PROPERTIES, FUSE = "tests/test_properties.py::test_", "tests/test_fuse_export.py::test_"
STATES = "tests/test_checkpoint_properties.py::test_"
CHECKPOINT, LOOP = "tests/test_train_checkpoint.py", "tests/test_train_loop.py::test_"
TESTS = {  # what is mutated, and the tests that should notice
    "pnnh.layers.fold": [
        f"{PROPERTIES}a_stage_has_its_shape_and_folds_to_an_equal_chain",
        f"{PROPERTIES}a_folded_norm_is_the_norm",
        f"{FUSE}kernel_entries_of_a_learn_and_a_write_in_either_form",
        f"{FUSE}fuse_refuses_in_one_line",
        f"{PROPERTIES}a_dirac_hands_on_and_an_embedded_kernel_is_the_same",
        f"{PROPERTIES}a_layer_with_two_activations_does_not_fold",
        f"{PROPERTIES}a_norm_folds_only_into_a_convolution_right_before_it",
    ],
    "pnnh.convert.fuse": [
        f"{PROPERTIES}fuse_proves_itself_inside_any_net",
        f"{FUSE}fuse_refuses_in_one_line",
        f"{FUSE}nothing_to_fold_is_refused",
        f"{FUSE}shared_stage_is_folded_once",
        f"{FUSE}a_stage_inside_a_chain_folds_with_it",
        f"{PROPERTIES}the_cost_of_a_fusion_is_that_of_one_image",
        f"{PROPERTIES}a_fusion_that_changes_the_function_is_refused",
        f"{PROPERTIES}the_limit_of_the_proof_is_allowed",
        f"{PROPERTIES}only_a_norm_at_its_initial_values_has_seen_nothing",
        f"{PROPERTIES}a_net_that_reads_integers_and_has_a_fuse_of_its_own",
        f"{PROPERTIES}what_cannot_be_folded_is_named_by_its_place",
    ],
    "pnnh.train.checkpoint": [
        CHECKPOINT,
        f"{STATES}any_tensors_and_values_come_back_as_they_were",
        f"{STATES}any_module_comes_back_and_no_other_takes_its_place",
        f"{STATES}any_flipped_bit_of_any_tensors_is_detected",
    ],
    "pnnh.train.store": [
        f"{LOOP}resuming_at_any_step_is_bitwise_the_uninterrupted_run[5-sgd]",
        f"{LOOP}a_finished_run_is_read_not_trained_again",
        f"{LOOP}the_folder_of_a_finished_run",
        f"{LOOP}another_run_in_the_folder_is_refused_unless_started_anew",
        f"{LOOP}a_damaged_state_is_named_and_the_one_before_it_used",
        f"{LOOP}sigterm_saves_and_stops",
        f"{LOOP}a_loss_that_is_not_finite_names_the_layer_and_keeps_the_last_good_state",
        f"{LOOP}a_run_started_anew_leaves_nothing_of_the_old_one",
        f"{LOOP}a_state_of_another_version_is_refused_with_the_first_difference",
        f"{LOOP}an_old_state_that_cannot_be_dropped_does_not_stop_the_run",
        f"{LOOP}requests_that_cannot_work_are_refused_before_any_step",
    ],
}
MORE = {  # what survives those meets these as well
    "pnnh.convert.fuse": [
        f"{FUSE}timms_blocks_fold_through_their_own_interface",
        f"{FUSE}a_foreign_model_with_our_stages_and_timms_blocks_fold",
        f"{FUSE}every_plain_layer_folds_to_one_convolution",
        f"{FUSE}transformer_blocks_fold_to_four_linears_each",
    ],
    "pnnh.layers.fold": [
        "tests/test_refusals.py::test_activations_of_their_own_do_not_fold",
        f"{FUSE}every_plain_layer_folds_to_one_convolution",
        f"{FUSE}a_stage_inside_a_chain_folds_with_it",
    ],
    "pnnh.train.checkpoint": ["tests/test_train_processes.py::test_a_folder_has_one_writer"],
    "pnnh.train.store": [
        f"{LOOP}resuming_at_any_step_is_bitwise_the_uninterrupted_run",
        f"{LOOP}a_stop_during_an_evaluation_is_heard_and_the_evaluation_made_again",
        "tests/test_train_processes.py::test_a_folder_has_one_writer",
    ],
}
LENGTHS, NOISE, SPACE = "of one length by construction", "any noise proves as much", "white space in a JSON file"
COPIES = "copies what need not be copied; what is written is the same"
EQUIVALENT = [  # module, start of the line, change: these may survive, because nothing that can be observed is changed
    ("pnnh.layers.fold", "around = [(large - small) // 2 for large, small in zip(size,", "True -> False", LENGTHS),
    ("pnnh.layers.fold", "kernels, biases = zip(*(fold_conv(half[0], half[1])", "True -> False", LENGTHS),
    ("pnnh.convert.fuse", "generator = torch.Generator().manual_seed(0)", "0 -> 1", NOISE),
    ("pnnh.convert.fuse", "return (torch.randn(4,", "4 -> 5", NOISE),
    (
        "pnnh.train.checkpoint",
        "if value.untyped_storage().data_ptr() in owners:",
        "value.untyped_storage().data_ptr() in owners -> value.untyped_storage().data_ptr() not in owners",
        COPIES,
    ),
    ("pnnh.train.checkpoint", "data = (json.dumps(value, indent=1,", "1 -> 2", SPACE),
    ("pnnh.train.checkpoint", 'write_bytes(folder / "manifest.json", (json.dumps({"format"', "1 -> 2", SPACE),
]
PRELOADED = (
    "torch timm hypothesis pytest timm.optim timm.scheduler timm.utils torch.export torch._dynamo torch.onnx onnx"
)
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


def tested(module: str, tree: ast.Module | None, seconds: int, tests: list[str]) -> tuple[str, float]:
    """ "survived", "killed" or "timed out", and processor seconds: `tests` where the code of `module` is `tree`."""
    child = os.fork()
    if child == 0:
        os._exit(_run_tests(module, tree, seconds, tests))
    _, status, used = os.wait4(child, 0)
    fate = "survived" if status == 0 else "killed"
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        fate = "timed out"
    return fate, used.ru_utime + used.ru_stime


def _run_tests(module: str, tree: ast.Module | None, seconds: int, tests: list[str]) -> int:
    import hypothesis
    import pytest

    hypothesis.settings.register_profile("first", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate])
    hypothesis.settings.load_profile("first")  # a failure need not be made small
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1), os.dup2(silent, 2)
    ordinary = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader, name):
        return compile(tree, str(path_of(module)), "exec") if name == module else ordinary(loader, name)

    if tree is not None:
        importlib.machinery.SourceFileLoader.get_code = get_code
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # but for those that the tests are configured for
    plugins = [f"-p{name}" for name in ("pytest_timeout", "_hypothesis_pytestplugin", "no:cacheprovider")]
    options = ["-x", "-q", "--hypothesis-seed=0", *plugins]
    return int(pytest.main([*options, "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests]))


def tried(mutant: Mutant, seconds: int) -> dict:
    """The mutant and its fate, as a row."""
    tree = mutated(mutant)
    fate, used = tested(mutant.module, tree, seconds, TESTS[mutant.module])
    if fate == "survived" and (reason := reason_for(mutant)):
        return asdict(mutant) | {"fate": "equivalent", "reason": reason, "processor_seconds": used}
    if fate == "survived":
        fate, used = tested(mutant.module, tree, seconds, MORE[mutant.module])
    if fate == "survived":
        print(f"survived: {mutant.module}:{mutant.line}  {mutant.was[:90]}  ->  {mutant.now[:90]}", flush=True)
    return asdict(mutant) | {"fate": fate, "processor_seconds": used}


def reason_for(mutant: Mutant) -> str | None:
    """Why the mutant changes nothing, if it is one of EQUIVALENT."""
    line = path_of(mutant.module).read_text().splitlines()[mutant.line - 1].strip()
    found = [
        reason
        for module, start, change, reason in EQUIVALENT
        if (mutant.module, f"{mutant.was} -> {mutant.now}") == (module, change) and line.startswith(start)
    ]
    return found[0] if found else None


def sampled(every: dict[str, list[Mutant]], count: int | None, seed: int) -> list[Mutant]:
    """The first `count` in random order, one of each module in turn; SystemExit if tests fail without a mutation."""
    for module in TESTS:
        fate, used = tested(module, None, 300, [*TESTS[module], *MORE[module]])
        print(f"{module}: {fate} without a mutation, {used:.1f} s", flush=True)
        if fate != "survived":
            raise SystemExit(1)
    draw = random.Random(seed)
    turns = zip_longest(*(draw.sample(mutants, len(mutants)) for mutants in every.values()))
    return [mutant for turn in turns for mutant in turn if mutant is not None][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("mutants", None), ("seed", 0), ("seconds", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--survivors", action="store_true", help="try those of the record again, after adding tests")
    chosen = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "src"))
    for name in PRELOADED.split():
        importlib.import_module(name)  # once, before the forks; nothing of ours
    gc.freeze()  # no child looks through all that again
    assert not [name for name in sys.modules if name.split(".")[0] == "pnnh"]
    facts = evidence()
    every = {module: mutants_of(module) for module in TESTS}
    if chosen.survivors:
        rows = json.loads(RECORD.read_text())["mutants"]
        mutants = [Mutant(**{field.name: row[field.name] for field in fields(Mutant)}) for row in rows]
        if not {*mutants} <= {mutant for known in every.values() for mutant in known}:
            raise SystemExit("the code is not that of the record; try all of its mutants, without --survivors")
        rows = [
            tried(mutant, chosen.seconds) if row["fate"] == "survived" else row
            for mutant, row in zip(mutants, rows, strict=True)
        ]
        table = write(rows, every, chosen, facts)
    else:
        rows = []
        for mutant in sampled(every, chosen.mutants, chosen.seed):
            rows.append(tried(mutant, chosen.seconds))
            table = write(rows, every, chosen, facts)  # each time: whenever it ends, this was tried
    print(json.dumps(table, indent=1))


def write(rows: list[dict], every: dict[str, list[Mutant]], chosen: argparse.Namespace, facts: dict) -> list[dict]:
    """Writes the record; returns its summary, one row a module."""
    table = []
    for module, mutants in every.items():
        fates = Counter(row["fate"] for row in rows if row["module"] == module)
        table.append({"module": module, "possible": len(mutants), "tried": sum(fates.values()), **fates})
    result = {"summary": table, "mutants": rows, "seed": chosen.seed, "tests": TESTS, "more": MORE}
    command = f"python results/scripts/mutate.py --mutants {len(rows)} --seed {chosen.seed}"
    result |= facts | {"command": command}
    RECORD.write_text(json.dumps(result, indent=1) + "\n")
    return table


if __name__ == "__main__":
    main()
