"""README and docs: their code runs, the commands and make targets they show exist, their numbers come from records."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest
import readme_figure

from pnnh.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(page.read_text()) if language in languages]


def command_lines(page: Path, program: str) -> list[list[str]]:
    """The words of every line in a shell block, and of every code span, that starts with `program`."""
    lines = [line for block in blocks(page, "", "sh", "bash", "console") for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text()))
    commands = [line.strip().removeprefix("$ ") for line in lines]
    return [shlex.split(line, comments=True) for line in commands if line.startswith(f"{program} ")]


def launched(page: Path) -> list[list[str]]:
    """The commands of ours that torchrun and other launchers start, from `pnnh` on."""
    lines = [line for launcher in ("torchrun", "accelerate", "srun") for line in command_lines(page, launcher)]
    return [words[words.index("pnnh") :] for words in lines if "pnnh" in words]


WITH_CODE = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    """In order, in one namespace, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "page"}
    for number, code in enumerate(blocks(page, "python"), start=1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), space)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist_with_their_options(page):
    for _, name, *words in [*command_lines(page, "pnnh"), *launched(page)]:
        if name in ("COMMAND", "--help", "--version"):
            continue
        assert name in COMMANDS, f"pnnh {name}"
        known = {f"--{word.replace('_', '-')}" for word in inspect.signature(command(name)).parameters}
        shown = {word.split("=")[0] for word in words if word.startswith("--")} - {"--help"}
        assert shown <= known, f"pnnh {name} {sorted(shown - known)}"


def command(name: str):
    return importlib.import_module(f"pnnh.cli.{name}").run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_make_targets_of_a_page_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for words in command_lines(page, "make") for word in words[1:]} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_a_page_links_to_exist(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", BLOCK.sub("", page.read_text()))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_readme_shows_every_command():
    shown = {words[1] for words in command_lines(ROOT / "README.md", "pnnh")}
    assert shown >= COMMANDS.keys()


def test_the_numbers_of_the_readme_are_those_of_the_records():
    readme = (ROOT / "README.md").read_text()
    assert readme_figure.rendered(readme) == readme, "run python results/scripts/readme_figure.py"


def test_every_page_is_in_the_table_of_contents():
    nav, index = (ROOT / "mkdocs.yml").read_text(), (ROOT / "docs" / "index.md").read_text()
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert not [name for name in names if name not in nav or f"({name})" not in index]
