"""What the README and docs/ show runs, is compared with what really comes, or says why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from pages import PAGES, ROOT, Page

import kvpersist

NEED_POSTGRES = {"cli.md", "moving.md", "operations.md", "postgres.md", "workers.md"}
NO_CODE = {"{toctree}", "{eval-rst}", "{literalinclude} ../examples/log_store.py"}
"""Blocks that Sphinx makes something else of. The included file has tests of its own."""
IDS = [str(path.relative_to(ROOT)) for path in PAGES]


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_the_page_runs(
    path: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From top to bottom, each block after the one before it, in a folder of the page's."""
    server = None
    if path.name in NEED_POSTGRES:
        server = request.getfixturevalue("postgres")
        server.query("DROP DATABASE IF EXISTS bot")
        server.query("CREATE DATABASE bot")
    page = Page(path, tmp_path, server)
    page.run(monkeypatch)
    for reason in page.skipped:
        assert len(reason.split()) > 2, f"no reason: {reason}"


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_no_block_is_left_out(path: Path, tmp_path: Path) -> None:
    """Every block that Markdown knows is one that runs, or that has a reason not to."""
    text = path.read_text()
    tokens = MarkdownIt("commonmark").parse(text)
    shown = {
        token.content
        for token in tokens
        if token.type in {"fence", "code_block"} and token.info not in NO_CODE
    }
    known = {str(example.parsed) for example in Page(path, tmp_path).examples()}
    assert {block.strip() for block in shown} <= {block.strip() for block in known}


def test_the_reference_has_every_public_name() -> None:
    """Each once, and no name of the package that is not public."""
    text = (ROOT / "docs" / "api.md").read_text()
    described = re.findall(r"^\.\. auto\w+:: kvpersist\.(\w+)$", text, re.MULTILINE)
    described = [name for name in described if name != "errors"]  # the module with the tree
    assert sorted(described) == kvpersist.__all__


def test_the_pages_are_all_in_the_contents() -> None:
    """Each once."""
    text = (ROOT / "docs" / "index.md").read_text()
    (*trees,) = re.findall(r"^```{toctree}\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    names = [line.rstrip(">").rpartition("<")[2] for tree in trees for line in tree.splitlines()]
    listed = sorted(name for name in names if name and not name.startswith(":"))
    assert listed == sorted(path.stem for path in PAGES[1:] if path.stem != "index")
