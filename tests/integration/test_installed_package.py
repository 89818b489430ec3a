"""The installed package sets up a database by itself, far from this repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commandbus.migrating import migrations_folder, read_migrations

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import asyncio, json, sys
import commandbus

url = sys.argv[1]
steps = []
first = commandbus.setup_database(url, on_step=steps.append)
second = commandbus.setup_database(url)

async def send():
    async with commandbus.create_pool(url, min_size=1) as pool:
        bus = commandbus.CommandBus(pool)
        await bus.create_domain("orders")
        return (await bus.send("orders", "Reserve", commandbus.uuid7(), {})).created

print(json.dumps({
    "from": commandbus.__file__,
    "applied": first.applied,
    "steps": len(steps),
    "again": [second.installed_pgmq, *second.applied],
    "sent": asyncio.run(send()),
    "app": sorted(name for name in sys.modules if name.partition(".")[0] in ("app", "flask")),
}))
"""


@pytest.fixture(scope="module", name="installed")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package from a copy of its sources."""
    source = tmp_path_factory.mktemp("source")
    target = tmp_path_factory.mktemp("installed")
    shutil.copy(ROOT / "pyproject.toml", source)
    for folder in ("commandbus", "migrations"):
        shutil.copytree(ROOT / folder, source / folder)
    # pip fetches setuptools for the build, as it does for everybody who installs the package.
    arguments = ["--no-input", "--disable-pip-version-check", "--no-deps", "--target", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *arguments, str(source)],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        env={**os.environ, "PIP_RETRIES": "1", "PIP_DEFAULT_TIMEOUT": "10"},
    )
    if done.returncode and "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("pip cannot reach a package index that has setuptools")
    assert done.returncode == 0, done.stderr
    return target


def test_the_installed_package_carries_every_migration(installed: Path) -> None:
    carried = read_migrations(installed / "commandbus" / "migrating" / "sql")

    assert carried == read_migrations(migrations_folder())


def test_the_installed_package_sets_up_an_empty_database_and_sends(
    installed: Path, tmp_path: Path, empty_database_url: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, empty_database_url],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert Path(told["from"]).is_relative_to(installed)
    assert told["applied"] == [file.script for file in read_migrations(migrations_folder())]
    assert told["steps"] == len(told["applied"]) + 1  # and PGMQ
    assert told["again"] == [None]
    assert told["sent"] is True
    assert told["app"] == []
