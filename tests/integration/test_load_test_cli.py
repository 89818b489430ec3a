"""`python load_test.py` as a real process, with real workers."""

from __future__ import annotations

import json
import signal

import pytest

from commandbus import CommandBus, CommandStatus
from tests.facts import rows
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
    assert results["counts"] == {
        "PENDING": 0, "IN_PROGRESS": 0, "COMPLETED": 500, "FAILED": 0, "IN_TSQ": 0, "CANCELLED": 0,
    }  # fmt: skip
    assert (results["commands"], results["workers"]) == (500, 2)
    assert results["settings"]["mix"] == {"success": 500}
    assert (results["p50_ms"], results["p95_ms"], results["p99_ms"]) == tuple(
        results["latency_ms"]["running"].values()
    )
    assert results["throughput_per_second"] == pytest.approx(
        500 / results["total_seconds"], rel=0.01
    )
    parts = ("generation_seconds", "waiting_seconds", "processing_seconds")
    assert sum(results[part] for part in parts) == pytest.approx(results["total_seconds"], abs=0.5)
    # One that was still starting when the other had done everything is ended by the signal itself.
    assert {ended["code"] for ended in results["workers_ended"]} <= {0, -signal.SIGTERM}
    assert results["latency_ms"]["total"]["p99"] > 0
    for text in ("Load Test Results", "Total Commands", "Throughput", "Latency Percentiles", "p95"):
        assert text in running.output
    counts = await CommandBus(pool).count_by_status()
    assert counts[CommandStatus.COMPLETED] == 500


async def test_a_run_is_recorded_and_compared(database_url, pool, tmp_path):
    some = ("--commands", "50", "--workers", "1")
    _, running, first = await load_test(database_url, tmp_path, *some, "--name", "base")
    await rows(  # a run that no machine of today repeats
        pool,
        "update load_test_run set outcome = outcome || '{\"throughput_per_second\": 1e9}'",
    )

    code, running, second = await load_test(
        database_url, tmp_path, *some, "--compare", "base", "--max-regression", "50"
    )

    assert code == 3, running.output
    assert second["comparison"]["with"] == first["run_id"]
    assert "throughput" in second["comparison"]["regressions"]
    assert "Regression: throughput is worse by" in running.output
    recorded = await rows(pool, "select name, origin, state from load_test_run order by created_at")
    assert recorded == [("base", "cli", "finished"), (None, "cli", "finished")]
    by_id = ("--compare", first["run_id"][:18])
    code, running, third = await load_test(database_url, tmp_path, *some, *by_id)
    assert (code, third["comparison"]["with"]) == (0, first["run_id"])


async def test_nothing_is_done_where_there_is_nothing_to_compare_with(database_url, pool):
    arguments = ("--commands", "10", "--compare", "nobody")
    async with program("load_test.py", *arguments, DATABASE_URL=database_url) as running:
        assert await running.ends() == 1
    assert "There is no run 'nobody' to compare with" in running.output
    assert await rows(pool, "select from command_bus_command") == []
    assert await rows(pool, "select from load_test_run") == []


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
    assert results["deleted"] == 100
    assert "Deleted 100 commands with their trails\n" in running.output
    for table in ("test_command", "command_bus_command", "command_bus_audit", "command_bus_tsq"):
        assert await rows(pool, f"select from {table}") == [], table
    assert set((await CommandBus(pool).count_by_status()).values()) == {0}
    assert await rows(pool, "select * from command_bus.find_violations()") == []
    [[outcome]] = await rows(pool, "select outcome -> 'counts' from load_test_run")
    assert outcome["COMPLETED"] == 70


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
        (["--max-regression", "5"], "needs --compare"),
        (["--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
        (["--name", "two\nlines"], "printable"),
    ],
)
async def test_wrong_options_are_refused(arguments, text):
    async with program("load_test.py", *arguments) as running:
        assert await running.ends() == 2
    assert text in running.output
    assert "Traceback" not in running.output
