"""Programs that begin while the server is starting up, or is not there yet."""

from __future__ import annotations

import signal
import time

import pytest

from tests.chaos.proxy import error_message, proxied
from tests.programs import free_port, program

STARTING_UP = error_message(b"FATAL", "57P03", "the database system is starting up")
REFUSALS = 9  # connections: at least two attempts
NOWHERE = "postgresql://nobody:hidden-word@127.0.0.1:1/x"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("-m", "app.database", "migrate"), 0, "Migrations are up to date"),
        (("-m", "app.prune", "--older-than", "30d", "--dry-run"), 0, "Would delete no commands"),
        (("load_test.py", "--cancel", "nobody"), 1, "There is no run 'nobody'"),
        (("run.py",), 0, "is ready"),
    ],
)
async def test_a_server_that_is_starting_up_is_waited_for(database_url, arguments, code, text):
    async with proxied(database_url) as proxy:
        proxy.refusals, proxy.refusal = REFUSALS, STARTING_UP
        given = {"DATABASE_URL": proxy.url, "PORT": str(free_port())}
        async with program(*arguments, **given) as running:
            await running.says(text)
            if arguments == ("run.py",):
                running.process.terminate()
            assert await running.ends() == code
    assert proxy.refusals == 0
    [line] = [line for line in running.lines if line.startswith("Waiting for the database")]
    assert "20 s at most" in line
    assert "the database system is starting up" in line


@pytest.mark.parametrize("arguments", [("run.py",), ("load_test.py",)])
async def test_waiting_for_a_starting_server_ends_after_its_time(arguments):
    given = {"DATABASE_URL": NOWHERE, "PORT": str(free_port()), "DATABASE_WAIT": "1"}
    began = time.monotonic()
    async with program(*arguments, **given) as running:
        assert await running.ends() == 1
    assert time.monotonic() - began > 1
    waiting, error = running.lines
    assert waiting.startswith("Waiting for the database, for 1 s at most: Cannot connect to ")
    assert error.startswith("error: Cannot connect to ")
    assert "hidden-word" not in running.output


@pytest.mark.parametrize("arguments", [("run.py",), ("load_test.py",)])
async def test_a_signal_ends_the_wait_at_once(arguments):
    given = {"DATABASE_URL": NOWHERE, "PORT": str(free_port()), "DATABASE_WAIT": "3600"}
    async with program(*arguments, **given) as running:
        await running.says("Waiting for the database")
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() in (0, 130)
    assert "Traceback" not in running.output


@pytest.mark.parametrize(
    "refusal",
    [
        ("28P01", 'password authentication failed for user "ann"'),
        ("28000", 'no pg_hba.conf entry for host "127.0.0.1", user "ann", no encryption'),
        ("28000", 'role "ann" does not exist'),
    ],
)
async def test_what_is_refused_for_good_is_not_waited_for(database_url, refusal):
    async with proxied(database_url) as proxy:
        proxy.refusals, proxy.refusal = 1_000, error_message(b"FATAL", *refusal)
        given = {"DATABASE_URL": proxy.url, "PORT": str(free_port())}
        async with program("run.py", **given) as running:
            assert await running.ends() == 1
    [line] = running.lines
    assert refusal[1] in line
