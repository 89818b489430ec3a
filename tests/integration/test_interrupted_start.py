"""What ends a program before it does anything, or in the midst of its output: never a traceback."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from tests.credentials import credentials_file
from tests.programs import ROOT, program

# Runs before the program: a Ctrl-C comes at a terminal, just when psycopg is about to be imported.
AT_A_TERMINAL = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)


class CtrlC:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "psycopg":
            os.kill(os.getpid(), signal.SIGINT)
        return None


sys.meta_path.insert(0, CtrlC)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["run.py", "--port", "1"],
        ["load_test.py", "--commands", "1"],
        ["-m", "app.worker"],
        ["-m", "app.prune", "--keep", "1"],
        ["-m", "app.database", "status"],
        ["-m", "app.credentials", "list"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
async def test_ctrl_c_during_the_imports_ends_a_program_without_a_traceback(arguments, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(AT_A_TERMINAL)

    async with program(*arguments, PYTHONPATH=str(tmp_path)) as running:
        assert await running.ends() == -signal.SIGINT
    assert running.output == ""


PROGRAMS = (
    ("run.py",),
    ("load_test.py", "--commands", "1"),
    ("-m", "app.worker"),
    ("-m", "app.database", "status"),
    ("-m", "app.prune", "--keep", "1"),
    ("-m", "app.credentials", "list"),
)
OLD_PYTHON = "import sys; sys.version_info = (3, 9, 2, 'final', 0)"


async def one_line_of_each(*options: str, **environment: str) -> list[str]:
    """The one line with which each program ends."""

    async def line(arguments: tuple[str, ...]) -> str:
        async with program(*options, *arguments, **environment) as started:
            assert await started.ends() == 1
            [only] = started.lines
            return only

    return await asyncio.gather(*map(line, PROGRAMS))


async def test_without_the_packages_each_program_says_so_in_one_line():
    for line in await one_line_of_each("-S"):
        assert line.startswith("error: psycopg, psycopg_pool, dotenv are not installed for ")


async def test_with_an_old_python_each_program_says_so_in_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(OLD_PYTHON)

    for line in await one_line_of_each(PYTHONPATH=str(tmp_path)):
        assert line.startswith("error: Python 3.11 or newer is needed, and this is 3.9.2 ")


@pytest.mark.parametrize(
    "arguments", [("-m", "app.database", "status"), ("-m", "app.credentials", "list")]
)
async def test_a_reader_that_leaves_is_no_error(arguments, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=ROOT,
        env={
            **os.environ,
            "DATABASE_URL": "",
            "DATA_DIR": str(tmp_path),
            "CREDENTIALS_FILE": str(credentials_file(tmp_path)),
        },
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writing)
    _, told = await process.communicate()

    assert (process.returncode, told) == (141, b"")
