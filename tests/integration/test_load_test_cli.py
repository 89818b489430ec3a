"""`python load_test.py` as a real process, with real workers."""

from __future__ import annotations

import json
import signal

import pytest

from commandbus import CommandBus, CommandStatus
from tests.programs import program


async def load_test(database_url, tmp_path, *arguments):
    """Run it to its end; returns the program and its results."""
    file = tmp_path / "results.json"
    given = {"DATABASE_URL": database_url, "RETRY_BASE_DELAY_MS": "50"}
    async with program("load_test.py", "--json", str(file), *arguments, **given) as running:
        code = await running.ends()
    return code, running, json.loads(file.read_text())


async def test_every_command_is_generated_and_processed(database_url, pool, tmp_path):
    code, running, results = await load_test(
        database_url, tmp_path, "--commands", "500", "--workers", "2", "--name", "first"
    )
    assert code == 0, running.output
    assert (results["complete"], results["unaccounted"], results["name"]) == (True, 0, "first")
    assert results["counts"]["COMPLETED"] == 500
    # One that was still starting when the other had done everything is ended by the signal itself.
    assert {ended["code"] for ended in results["workers_ended"]} <= {0, -signal.SIGTERM}
    assert results["latency_ms"]["total"]["p99"] > 0
    for text in ("Load Test Results", "Total Commands", "Throughput", "Latency Percentiles", "p95"):
        assert text in running.output
    counts = await CommandBus(pool).count_by_status()
    assert counts[CommandStatus.COMPLETED] == 500


async def test_mixed_behaviours_end_where_they_should(database_url, pool, tmp_path):
    mix = "success=50,fail_transient_then_succeed=20,fail_permanent=10,fail_transient=10"
    code, running, results = await load_test(
        database_url,
        tmp_path,
        *("--commands", "100", "--workers", "1", "--mix", f"{mix},fail_business=10", "--delete"),
    )
    assert code == 0, running.output
    assert {status: n for status, n in results["counts"].items() if n} == {
        "COMPLETED": 70,
        "IN_TSQ": 20,
        "FAILED": 10,
    }
    assert results["retried"] == 20 + 10 * 2
    async with pool.connection() as conn:
        assert await (await conn.execute("select from test_command")).fetchall() == []


async def test_an_interrupted_run_reports_what_was_done(database_url, tmp_path):
    file = tmp_path / "results.json"
    arguments = ("--commands", "200", "--workers", "1", "--delay-ms", "500", "--concurrency", "2")
    async with program(
        "load_test.py", "--json", str(file), *arguments, DATABASE_URL=database_url
    ) as running:
        await running.says("processing them")
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 130
    results = json.loads(file.read_text())
    assert (results["created"], results["unaccounted"]) == (200, 0)
    assert results["stopped_by"] == "interrupted"
    assert "commands did not come to an end" in running.output
    assert "Traceback" not in running.output


async def test_a_run_without_living_workers_ends_with_an_error(database_url, tmp_path):
    given = {"DATABASE_URL": database_url, "WORKER_POLL_INTERVAL": "never"}
    async with program("load_test.py", "--commands", "10", "--workers", "1", **given) as running:
        assert await running.ends() == 1
    assert "all worker processes have ended" in running.output
    assert "10 commands did not come to an end" in running.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--commands", "0"], "from 1 to 1000000"),
        (["--mix", "success=90"], "add up to 90, not to 100"),
        (["--mix", "success=90,explode=10"], "Input should be"),
        (["--mix", "success=100", "--success-pct", "100"], "not both"),
        (["--success-pct", "101"], "from 0 to 100"),
    ],
)
async def test_wrong_options_are_refused(arguments, text):
    async with program("load_test.py", *arguments) as running:
        assert await running.ends() == 2
    assert text in running.output
    assert "Traceback" not in running.output
