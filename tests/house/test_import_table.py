"""Who may import whom, part by part and file by file, read from the syntax trees; nothing is imported here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "pnnh"
FREE = {"_errors", "__version__"}
MAY_IMPORT = {
    "_errors": set(),
    "_files": set(),
    "checkpoint": {"_files"},
    "provenance": set(),
    "_modules": set(),
    "_quiet": set(),
    "_html": set(),
    "cost": {"_modules"},
    "theory": set(),
    "layers": {"theory"},
    "models": {"layers"},
    "analysis": {"_html", "_modules", "certify", "theory"},
    "certify": {"_html", "_modules", "_quiet"},
    "convert": {"_modules", "_quiet", "cost", "layers", "certify"},
    "data": {"_files"},
    "train": {"_files", "_modules", "checkpoint", "provenance", "data"},
    "compare": {"models", "data", "train", "analysis", "_modules", "_files", "cost", "provenance", "report"},
    "bench": {"models", "train", "cost", "load"},
    "report": set(),
    "load": {"checkpoint", "models", "convert"},
    "hub": {"convert", "report"},
}
MAY_IMPORT["cli"] = {*MAY_IMPORT, "cli"}
MAY_IMPORT["__init__"] = {*MAY_IMPORT} - {"cli"}  # names for type checkers; nothing runs on import
MAY_IMPORT["__main__"] = {"cli"}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    """Full dotted names that `tree` imports, wherever it does; `from a import b` is a.b."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write relative imports in full"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def parts_imported(tree: ast.AST) -> set[str]:
    return {name.split(".")[1] for name in imports(tree) if name.startswith("pnnh.")}


def faults(part: str, source: str) -> set[str]:
    return parts_imported(ast.parse(source)) - MAY_IMPORT[part] - FREE - {part}


def run_on_import(tree: ast.Module) -> list[ast.stmt]:
    """The statements at the top of a file that are executed when it is imported (not those for type checkers)."""
    checking = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if node not in checking and not isinstance(node, kinds)]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_part_may(file):
    assert part_of(file) in MAY_IMPORT, f"{file.name} belongs to no part of the table; add a row"
    assert not faults(part_of(file), file.read_text())


@pytest.mark.parametrize(
    ("part", "source", "fault"),
    [
        ("analysis", "from pnnh.models import CifarNet", {"models"}),
        ("analysis", "def f():\n    from pnnh import models", {"models"}),
        ("theory", "import pnnh._modules", {"_modules"}),
        ("train", "from pnnh.models.cifar import WIDTHS", {"models"}),
        ("data", "def f():\n    from pnnh.train import Recipe", {"train"}),
        ("report", "from pnnh import __version__, compare", {"compare"}),
        ("convert", "from pnnh._errors import UsageError\nfrom pnnh.layers import fold", set()),
    ],
)
def test_the_check_itself_finds_a_fault_and_no_other(part, source, fault):
    assert faults(part, source) == fault


def test_the_parts_form_a_hierarchy():
    """No two parts may import each other, directly or through others."""
    left = {part: may - {part} for part, may in MAY_IMPORT.items()}
    while left:
        ready = {part for part, may in left.items() if not may & left.keys()}
        assert ready, f"a circle among {sorted(left)}"
        left = {part: may for part, may in left.items() if part not in ready}


# --- files: also inside a part, imports inside functions and for type checkers counted -------------------------------

KNOWN_CIRCLES = [  # shrinks until it is empty: a circle may lose files, and leaves the list when it is gone
]


def module_of(file: Path) -> str:
    """`train.data` for src/pnnh/train/data.py, `train` for src/pnnh/train/__init__.py."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def files_imported(tree: ast.AST, known: set[str]) -> set[str]:
    """The modules of the package that a file reads: the longest part of each imported name that is a module."""
    found = set()
    for name in imports(tree):
        words = name.split(".")[1:] if name.startswith("pnnh.") else []
        while words and ".".join(words) not in known:
            words.pop()
        found |= {".".join(words)} if words else set()
    return found


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of two or more modules that import each other, directly or through others (and self-imports)."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            new = graph.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    after = {name: reached(name) for name in graph}
    found = {frozenset(other for other in after[name] if name in after[other]) for name in graph if name in after[name]}
    return sorted((set(circle) for circle in found), key=sorted)


def test_no_file_imports_itself_through_others():
    known = {module_of(file) for file in FILES} - {"__init__"}
    graph = {module_of(file): files_imported(ast.parse(file.read_text()), known) for file in FILES}
    found = circles(graph)
    assert not [circle for circle in found if not any(circle <= allowed for allowed in KNOWN_CIRCLES)]
    assert not [allowed for allowed in KNOWN_CIRCLES if not any(circle <= allowed for circle in found)], "gone: delete"


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ({"a": "from pnnh import b", "b": "from pnnh.c import f", "c": ""}, []),
        (
            {"a": "from pnnh import b", "b": "def f():\n    import pnnh.c.d", "c": "", "c.d": "from pnnh.a import f"},
            ["ab"],
        ),
        ({"a": "if TYPE_CHECKING:\n    from pnnh.b import B", "b": "from pnnh.a import A"}, ["ab"]),
        ({"a": "from pnnh.a import f"}, ["a"]),
    ],
)
def test_the_search_for_circles_finds_them_and_no_other(sources, found):
    graph = {name: files_imported(ast.parse(text), set(sources)) for name, text in sources.items()}
    assert ["".join(sorted(name for name in circle if "." not in name)) for circle in circles(graph)] == found


COMMANDS = [file for file in sorted((PACKAGE / "cli").glob("*.py")) if file.name[0] != "_"]
SHARED = [PACKAGE / "cli" / "__init__.py", PACKAGE / "cli" / "_shared.py"]


@pytest.mark.parametrize("file", [*COMMANDS, *SHARED], ids=lambda file: file.stem)
def test_a_command_imports_heavy_things_inside_its_functions(file):
    """`--help` of a command stays quick: at the top only the standard library and the argument parser."""
    at_top = {name for node in run_on_import(ast.parse(file.read_text())) for name in imports(node)}
    at_top = {name for name in at_top if not name.startswith("pnnh.cli._shared.")}
    assert {name.split(".")[0] for name in at_top} <= {*sys.stdlib_module_names, "tyro"}


def test_the_package_imports_nothing_on_import():
    face = ast.parse((PACKAGE / "__init__.py").read_text())
    at_top = {name.split(".")[0] for node in run_on_import(face) for name in imports(node)}
    assert at_top <= sys.stdlib_module_names


def test_there_is_no_room_for_anything():
    assert not [file for file in FILES if file.stem in {"utils", "util", "helpers", "misc", "common"}]
