"""Standard streams that are full, closed, or spell only ASCII."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from app.settings.configuration import LogFormat
from app.settings.logs import configure_logging
from app.settings.streams import LineQueue
from tests.programs import ROOT


@pytest.fixture(name="pipe")
def _pipe():
    """A pipe that nobody reads, full to the last byte: its two ends."""
    read, write = os.pipe()
    fill(write)
    yield read, write
    for end in (read, write):
        os.close(end)


def fill(write):
    os.set_blocking(write, False)
    for size in (4096, 1):
        try:
            while True:
                os.write(write, b"x" * size)
        except BlockingIOError:
            pass
    os.set_blocking(write, True)


def read_until(read, text):
    seen = b""
    while text not in seen:
        seen += os.read(read, 65_536)
    return seen.lstrip(b"x").decode()


def test_nobody_who_writes_waits_for_a_full_pipe(pipe):
    read, write = pipe
    queue = LineQueue(write, bound=100)
    for number in range(50):
        queue.put(b"line %02d\n" % number)
    assert not queue.drain(0.01)  # nor does anybody wait for ever

    queue_lines = read_until(read, b"lines dropped\n").splitlines()
    assert queue_lines == [*(f"line {number:02}" for number in range(12)), "38 lines dropped"]
    queue.put(b"again\n")
    assert queue.drain(10)
    assert read_until(read, b"again\n") == "again\n"


def test_a_file_that_never_waits_is_written_in_full(pipe):
    read, write = pipe
    os.set_blocking(write, False)  # as whoever shares it may set it
    queue = LineQueue(write)
    queue.put(b"y" * 100_000 + b"\n")
    assert len(read_until(read, b"\n")) == 100_001
    assert queue.drain(10)


@pytest.mark.parametrize("log_format", LogFormat)
def test_the_log_drops_lines_and_says_how_many(pipe, log_format):
    read, write = pipe
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        with open(write, "w", closefd=False) as stream:
            configure_logging(log_format, "INFO", stream=stream)
            for _ in range(1_100):
                logging.getLogger("app.test").info("large", extra={"text": "y" * 4096})
        text = read_until(read, b"log_lines_dropped")
        assert text.count("large") < 1_100
    finally:
        for handler in list(root.handlers):
            root.removeHandler(handler)
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)
        logging.captureWarnings(False)


def run(shell, **environment):
    """A command of the shell with the words `python -m …`; its exit code and what it printed."""
    done = subprocess.run(
        ["sh", "-c", shell.replace("python", sys.executable, 1)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


PROGRAMS = [
    "run.py",
    "load_test.py",
    *("-m app.worker", "-m app.database", "-m app.prune", "-m app.credentials"),
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_cannot_be_printed_is_told_by_one_line_and_the_exit_code(program):
    if not os.path.exists("/dev/full"):  # noqa: PTH110 - a device
        pytest.skip("this system has no /dev/full")
    told = "error: standard output cannot be written: No space left on device\n"
    assert run(f"python {program} --help >/dev/full") == (1, "", told)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_closed_stream_is_no_error(program):
    assert run(f"python {program} --help <&- >&- 2>&-") == (0, "", "")


def test_an_error_that_cannot_be_told_keeps_its_exit_code():
    if not os.path.exists("/dev/full"):  # noqa: PTH110 - a device
        pytest.skip("this system has no /dev/full")
    assert run("python load_test.py --unknown 2>/dev/full") == (2, "", "")
    assert run("python load_test.py --unknown 2>&-") == (2, "", "")


def test_what_the_encoding_lacks_is_a_question_mark(tmp_path):
    file = tmp_path / "users"
    add = f"python -m app.credentials --file {file} add Jürgen --role viewer --password-stdin"
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    code, output, errors = run(f"echo 'a long secret' | {add}", **ascii_only)
    assert (code, output, errors) == (0, "J?rgen may sign in as viewer\n", "")
