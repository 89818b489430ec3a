"""The library can be installed by itself: what pyproject.toml says of it is so."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

import commandbus
from commandbus.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_of_the_package_is_that_of_the_library():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]

    assert PROJECT["dynamic"] == ["version"]
    assert setuptools["dynamic"]["version"] == {"attr": "commandbus.version.VERSION"}
    assert f"## {VERSION} " in (ROOT / "CHANGELOG.md").read_text()


def _pinned_version(name: str) -> str:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    [pinned] = [line for line in lines if line.startswith(name)]
    [version] = Requirement(pinned.partition("#")[0]).specifier
    return version.version


def test_the_pinned_driver_is_one_that_the_package_takes():
    [needed] = map(Requirement, PROJECT["dependencies"])

    assert needed.specifier.contains(_pinned_version(needed.name))
    assert needed.extras == {"pool"}


def test_the_pinned_pgmq_is_one_that_the_extra_takes():
    [needed] = map(Requirement, PROJECT["optional-dependencies"]["setup"])

    assert needed.specifier.contains(_pinned_version(needed.name))


def test_the_package_imports_only_what_it_names():
    imported = set()
    for path in Path(commandbus.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])

    assert imported - sys.stdlib_module_names == {
        "commandbus",
        "pgmq",  # the extra `setup`
        "psycopg",
        "psycopg_pool",
    }
