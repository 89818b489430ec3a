"""Who may import what of the library, and where SQL text may stand; every module is read here."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import commandbus

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "library.md").read_text()


def _documented_modules() -> dict[str, set[str] | None]:
    """The modules that docs/library.md lists, each with its public names; None: its __all__."""
    [table] = re.findall(r"\| Module \| Public names \|.*?\n\n", PAGE, re.S)
    modules: dict[str, set[str] | None] = {}
    for module, names in re.findall(r"^\| `([\w.]+)` \| (.*?) \|$", table, re.M):
        listed = names.partition(":")[0]
        modules[module] = None if listed == "all" else set(re.findall(r"`(\w+)`", listed))
    return modules


def _public_names(module: str) -> set[str]:
    """The public names of a documented module."""
    listed = _documented_modules()[module]
    loaded = importlib.import_module(module)
    if listed is not None:
        return listed
    declared = getattr(loaded, "__all__", None)
    return set(declared) if declared is not None else {n for n in vars(loaded) if n[0] != "_"}


def _imports() -> Iterator[tuple[str, str, str]]:
    """Every name that the application imports from the library: file, module, name."""
    for path in [*(ROOT / "app").rglob("*.py"), ROOT / "run.py", ROOT / "load_test.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            file = path.relative_to(ROOT).as_posix()
            if isinstance(node, ast.ImportFrom) and node.module:
                if node.module.partition(".")[0] == "commandbus":
                    for alias in node.names:
                        yield file, node.module, alias.name
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.partition(".")[0] == "commandbus":
                        yield file, alias.name, "*"


def test_the_application_imports_only_public_names_of_the_library() -> None:
    public = {"commandbus": set(commandbus.__all__)}
    public |= {module: _public_names(module) for module in _documented_modules()}

    others = {found for found in _imports() if found[2] not in public.get(found[1], set())}

    assert others == set()


def test_every_module_and_name_that_the_page_lists_exists() -> None:
    modules = _documented_modules()

    assert len(modules) > 5
    for module in modules:
        loaded = importlib.import_module(module)
        assert {name for name in _public_names(module) if not hasattr(loaded, name)} == set()


SQL_PLACES = (
    "commandbus/store.py",
    "commandbus/queries.py",
    "commandbus/retention_store.py",
    "commandbus/migrating/",
    "commandbus/pools.py",  # one question to every new connection: is this a pooler?
    "app/database/",
    "app/models/",
    "app/testcommand/store.py",
    "app/actions/job_store.py",
    "app/loadtest/run_store.py",
    "app/loadtest/runs.py",
    "app/loadtest/recorded_runs.py",
)
SQL = re.compile(
    r"\s*(select\s.*?(\bfrom\b|\()|insert\s+into\s|update\s+[\w.]+(\s+as\s+\w+)?\s+set\s"
    r"|delete\s+from\s|with\s+\w+\s+as\s|call\s+[\w.]+\(|truncate\s+[\w.]"
    r"|(create|alter|drop)\s+(table|index|function|schema|role|database|extension|view)\s"
    r"|(un)?listen\s|notify\s|lock\s+table\s|set\s+(local|session)\s)",
    re.S,
)


def _texts(module: ast.Module) -> Iterator[ast.Constant]:
    """The string constants of a module, without its docstrings."""
    alone = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node


def _statements() -> Iterator[tuple[str, str]]:
    """Every text that begins as an SQL statement: file, and how it begins."""
    programs = [ROOT / "run.py", ROOT / "load_test.py"]
    for path in [*(ROOT / "app").rglob("*.py"), *(ROOT / "commandbus").rglob("*.py"), *programs]:
        for text in _texts(ast.parse(path.read_text())):
            if SQL.match(str(text.value)):
                yield path.relative_to(ROOT).as_posix(), " ".join(str(text.value).split())[:60]


def test_sql_text_stands_only_in_stores_models_and_database() -> None:
    found = set(_statements())

    assert {statement for statement in found if not statement[0].startswith(SQL_PLACES)} == set()
    # A place without SQL does not belong on the list.
    unused = {place for place in SQL_PLACES if not any(file.startswith(place) for file, _ in found)}
    assert unused == set()
