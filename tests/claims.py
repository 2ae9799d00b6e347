"""Pages whose every claim names, in a comment behind it, the tests that show it."""

from __future__ import annotations

import re
from pathlib import Path

from markdown_it import MarkdownIt

_COMMENT = re.compile(r"<!--\s*([^<>]*?)\s*-->", re.DOTALL)
_TEST = re.compile(r"(?:\w+\.py::)?\btest_\w+\b(?!\.py)")


def claims(page: Path) -> list[tuple[str, list[str]]]:
    """Return each paragraph, item and row of a page with the tests that it names."""
    found: list[tuple[str, list[str]]] = []
    row: list[str] = []
    parent = ""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        if token.type == "html_block" and found:
            found[-1][1].extend(_claim(token.content)[1])  # behind it, on a line of its own
        elif token.type == "inline" and parent == "td_open":
            row.append(token.content)
        elif token.type == "inline" and parent == "paragraph_open":
            found.append(_claim(token.content))
        elif token.type == "tr_close" and row:
            found.append(_claim(" | ".join(row)))
            row = []
        parent = token.type
    return found


def exists(test: str, here: Path) -> bool:
    """Whether there is a test of a name, in `here` or in the file that the name begins with."""
    module, _, name = test.rpartition("::")
    path = here.parent / (module or here.name)
    return bool(re.search(rf"^\s*(async )?def {name}\b", path.read_text(), re.MULTILINE))


def _claim(text: str) -> tuple[str, list[str]]:
    tests = [name for comment in _COMMENT.findall(text) for name in _TEST.findall(comment)]
    return _COMMENT.sub("", text).strip(), tests
