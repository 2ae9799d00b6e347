"""What is installed: the wheel, with the package only, its types, and every public name."""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from blockbuster import BlockingError

import kvpersist
from kvpersist.stores.sqlite_file import open_file

ROOT = Path(__file__).parent.parent


def test_the_installed_wheel_is_tested() -> None:
    """What is imported is what users install, not the source folder."""
    assert ROOT / "kvpersist" not in Path(kvpersist.__file__).parents
    assert "site-packages" in kvpersist.__file__


def test_the_wheel_has_the_package_only() -> None:
    """Neither tests nor examples are installed; the command and the marker of types are."""
    files = [file for file in importlib.metadata.files("kvpersist") or () if file.suffix != ".pyc"]
    (command,) = (file for file in files if file.parts[0] == "..")
    assert command.name == "kvpersist"
    files.remove(command)
    folders = {file.parts[0] for file in files}
    assert folders == {
        "kvpersist",
        f"kvpersist-{importlib.metadata.version('kvpersist')}.dist-info",
    }
    assert {str(file) for file in files if file.name == "py.typed"} == {"kvpersist/py.typed"}


def test_all_is_complete() -> None:
    """Every exception, and nothing that does not exist, is a public name of the package."""
    errors = {
        name
        for name, value in vars(importlib.import_module("kvpersist.errors")).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert errors <= set(kvpersist.__all__)
    assert all(hasattr(kvpersist, name) for name in kvpersist.__all__)
    assert kvpersist.__all__ == sorted(kvpersist.__all__)


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    """The module's docstring shows each exception below its base."""
    errors = importlib.import_module("kvpersist.errors")
    parents: list[str] = []
    for indent, name in re.findall(
        r"^( {4}[ │├└─]*)(\w+Error)", errors.__doc__ or "", re.MULTILINE
    ):
        depth = (len(indent) - 4) // 4
        parents[depth:] = [name]
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        assert bases[0] == (parents[depth - 1] if depth else "Exception")
    drawn = set(re.findall(r"\w+Error", errors.__doc__ or ""))
    assert drawn - {"ValueError"} == {name for name in vars(errors) if name.endswith("Error")}


def test_lower_layers_do_not_know_telegram() -> None:
    """Whoever reads the codec, group commit or an engine must not know PTB.

    What knows it is the persistence, what it is given by and to the application, what reads other
    persistences, and the codec's extension for PTB's classes.
    """
    upper = {
        "kvpersist.application",
        "kvpersist.callback_cache",
        "kvpersist.callback_queries",
        "kvpersist.conversations",
        "kvpersist.other_persistences",
        "kvpersist.persistence",
        "kvpersist.pickles",
        "kvpersist.telegram_objects",
        "kvpersist.updates",
        "kvpersist.worker_keyboards",
        "kvpersist.workers",
    }
    for module in pkgutil.walk_packages(kvpersist.__path__, "kvpersist."):
        source = inspect.getsource(importlib.import_module(module.name))
        imports_telegram = re.search(r"^\s*(from|import) telegram", source, re.MULTILINE)
        assert bool(imports_telegram) == (module.name in upper), module.name


def test_private_names_of_others_are_not_used() -> None:
    """PTB, aiosqlite and orjson may change what begins with an underscore at any time.

    An attribute with such a name is one of kvpersist's own classes: of self, or said to be so. Or
    it is one that Python documents, of enums and named tuples. Three modules know names of PTB's,
    each in one function, as docs/architecture.md says.
    """
    documented = {"_name_", "_value_", "_fields"}
    known = {
        "callback_cache.py": {"_keyboard_data", "_callback_queries"},
        "conversations.py": {"_conversations"},
        "updates.py": {"_chat_ids_to_be_updated_in_persistence"},
    }
    for path in Path(kvpersist.__file__).parent.rglob("*.py"):
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and re.match("_[^_]", node.attr)
                and node.attr not in documented | known.get(path.name, set())
            ):
                own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
                assert own or "# noqa: SLF001  its own class" in lines[node.lineno - 1], node.lineno
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [getattr(node, "module", ""), *(alias.name for alias in node.names)]
                assert not any(re.search(r"(^|\.)_[a-z]", module or "") for module in modules)


async def test_a_blocking_call_on_the_event_loop_fails_a_test(tmp_path: Path) -> None:
    """The watch over the event loop that every test has is awake."""
    with pytest.raises(BlockingError):
        open_file(str(tmp_path / "bot.db"), 0)
    connection = await asyncio.to_thread(open_file, str(tmp_path / "bot.db"), 0)
    await asyncio.to_thread(connection.close)
