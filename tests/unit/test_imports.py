"""The application uses only what the library offers: every import of it is read here."""

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
