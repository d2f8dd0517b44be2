"""README and docs: their code runs, the commands, make targets, files and headings that they name exist."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
from pathlib import Path

import pytest

from pnnh.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
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
def test_the_commands_of_a_page_are_understood(page, monkeypatch, capsys):
    """Every command that is shown with arguments is parsed as it stands; none is run."""
    spans = re.findall(r"`pnnh \w+ ([^`\n]+)`", BLOCK.sub("", page.read_text()))
    in_sentences = [shlex.split(words) for words in spans]  # may name an option without the rest of the command
    for _, name, *words in [*command_lines(page, "pnnh"), *launched(page)]:
        if name in ("COMMAND", "--help", "--version"):
            continue
        assert name in COMMANDS, f"pnnh {name}"
        module = importlib.import_module(f"pnnh.cli.{name}")
        with monkeypatch.context() as patch:
            patch.setattr(module, "run", functools.wraps(module.run)(lambda *_, **__: None))
            code = main([name, *words]) if words else 0
            error = capsys.readouterr().err
            partial = words in in_sentences and ("Required options" in error or "Missing value" in error)
            assert code == 0 or partial, f"{name} {words}: {error}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_make_targets_of_a_page_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for words in command_lines(page, "make") for word in words[1:] if "=" not in word} <= targets


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, heading or "") of every link of a page to a file of the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text()))
    local = [target.partition("#") for target in targets if "://" not in target]
    return [((page.parent / file).resolve() if file else page, heading) for file, _, heading in local]


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ +(.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()) for title in titles]
    return {re.sub(r"\s", "-", title.strip()) for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page):
    for file, heading in links(page):
        assert file.exists(), file
        assert not heading or heading in headings(file), f"{file.name}#{heading}"


def test_links_and_headings_are_read_as_the_site_reads_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Is `x` [it](a.md)?\n\n[one](b.md#two-words), [two](#is-x-it), [far](https://a.b)\n")
    assert headings(page) == {"is-x-it"}
    assert links(page) == [(tmp_path / "a.md", ""), (tmp_path / "b.md", "two-words"), (page, "is-x-it")]


def test_the_readme_shows_every_command():
    shown = {words[1] for words in command_lines(ROOT / "README.md", "pnnh")}
    assert shown >= COMMANDS.keys()


def test_every_page_is_in_the_table_of_contents():
    nav = (ROOT / "mkdocs.yml").read_text()
    docs = ROOT / "docs"
    assert not [page.name for page in docs.rglob("*.md") if str(page.relative_to(docs)) not in nav]


def test_guides_have_a_length_one_can_read():
    lengths = {page.name: page.read_text().count("\n") for page in (ROOT / "docs").glob("*.md")}
    assert not {name: lines for name, lines in lengths.items() if lines > 160 and name != "api.md"}
