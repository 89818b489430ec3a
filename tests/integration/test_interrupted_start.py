"""Ctrl-C while a program is still importing its modules: it ends, without a traceback."""

from __future__ import annotations

import signal

import pytest

from tests.programs import program

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
    ],
    ids=lambda arguments: arguments[-2],
)
async def test_ctrl_c_during_the_imports_ends_a_program_without_a_traceback(arguments, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(AT_A_TERMINAL)

    async with program(*arguments, PYTHONPATH=str(tmp_path)) as running:
        assert await running.ends() == -signal.SIGINT
    assert running.output == ""
