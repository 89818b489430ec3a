"""`python load_test.py` as a real process, with real workers."""

from __future__ import annotations

import json
import re
import signal
from contextlib import asynccontextmanager
from uuid import UUID

import pytest

from app.loadtest.generating import BulkOrder
from app.loadtest.runs import Origin, create_run, generate_run
from app.settings.configuration import ConfigStore
from app.testcommand.behaviors import BehaviorDistribution
from commandbus import CommandBus, CommandStatus
from commandbus.ops import TroubleshootingQueue
from load_test import _parser
from tests.facts import claim, completed, failed, register, release, rows, settle, value
from tests.programs import ROOT, program

KEYS = [
    *("commands", "workers", "total_seconds", "generation_seconds", "throughput_per_second"),
    *("p50_ms", "p95_ms", "p99_ms", "counts", "unaccounted", "settings"),
]


async def load_test(database_url, tmp_path, *arguments):
    """Run it to its end; returns the program and its results."""
    file = tmp_path / "results.json"
    given = {"DATABASE_URL": database_url, "RETRY_BASE_DELAY_MS": "50"}
    async with program("load_test.py", "--json", str(file), *arguments, **given) as running:
        code = await running.ends()
    return code, running, json.loads(file.read_text())


@asynccontextmanager
async def load_test_without_workers(database_url, file, *arguments):
    """A run that has generated its commands and waits; the test does the work."""
    given = ("--json", str(file), "--workers", "0", *arguments)
    async with program("load_test.py", *given, DATABASE_URL=database_url) as running:
        await running.says("processing them with the workers that run")
        yield running


async def test_a_load_test_in_lanes_runs_each_lane_in_order(database_url, pool, tmp_path):
    code, running, results = await load_test(
        database_url, tmp_path,
        "--commands", "300", "--workers", "2", "--lanes", "20", "--groups", "5",
    )  # fmt: skip

    assert code == 0, running.output
    assert (results["settings"]["lanes"], results["settings"]["groups"]) == (20, 5)
    in_lanes = await rows(
        pool,
        "select lane, array_agg(command_id order by lane_seq) = array_agg(command_id order by"
        " started_at), count(*) from command_bus_command group by lane",
    )
    assert sorted(in_lanes) == sorted(
        (f"group-{lane % 5}/lane-{lane}", True, 15) for lane in range(20)
    )


async def test_every_command_is_generated_and_processed(database_url, pool, tmp_path):
    code, running, results = await load_test(
        database_url, tmp_path, "--commands", "500", "--workers", "2", "--name", "first"
    )
    assert code == 0, running.output
    assert list(results)[: len(KEYS)] == KEYS
    assert set(results["counts"]) == set(CommandStatus)
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
    for line in (
        "Load Test Results",
        "Total Commands: 500",
        "Workers: 2",
        f"Throughput: {results['throughput_per_second']:.1f} commands/sec",
        "Latency Percentiles:",
        *(f"  {of}: {results[f'{of}_ms']:.1f}ms" for of in ("p50", "p95", "p99")),
    ):
        assert line in running.lines
    time = re.search(r"^Total Time: (\d+\.\d\d)s$", running.output, re.MULTILINE)
    assert time is not None
    assert float(time[1]) == pytest.approx(results["total_seconds"], abs=0.011)
    counts = await CommandBus(pool).count_by_status()
    assert counts[CommandStatus.COMPLETED] == 500


async def test_the_settings_of_the_workers_are_told_and_can_be_the_stored_ones(
    database_url, pool, tmp_path
):
    await ConfigStore(pool).update(worker={"concurrency": 7, "batch_size": 9}, changed_by="ann")
    some = ("--commands", "5", "--workers", "1")
    _, running, results = await load_test(database_url, tmp_path, *some)
    assert (results["settings"]["concurrency"], results["settings"]["batch_size"]) == (100, 100)
    assert (
        "Workers of this load test: concurrency 100 (the default of load tests), batch size 100"
        " (the default of load tests); for the stored settings give --concurrency stored and"
        " --batch-size stored"
    ) in running.lines

    widths = ("--concurrency", "stored", "--batch-size", "11")
    _, running, results = await load_test(database_url, tmp_path, *some, *widths)
    assert (results["settings"]["concurrency"], results["settings"]["batch_size"]) == (7, 11)
    told = "Workers of this load test: concurrency 7 (stored), batch size 11 (as given)"
    assert told in running.lines
    [last] = await rows(
        pool,
        "select concurrency, settings -> 'concurrency' ->> 'source' from command_bus_worker"
        " order by worker_id desc limit 1",
    )
    assert last == (7, "stored")
    recorded = "select settings -> 'workers' from load_test_run order by created_at desc limit 1"
    assert await value(pool, recorded) == {"processes": 1, "concurrency": 7, "batch-size": 11}


async def test_output_that_is_lost_or_not_ascii_costs_no_run(database_url, pool):
    some = ("load_test.py", "--commands", "5", "--workers", "1")
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "DATABASE_URL": database_url}
    async with program(*some, "--name", "Prüfung", "--json", "-", **ascii_only) as running:
        assert await running.ends() == 0, running.output
    assert not (ROOT / "-").exists()
    begin, end = running.lines.index("{"), running.lines.index("}")
    assert json.loads("\n".join(running.lines[begin : end + 1]))["name"] == "Prüfung"
    async with program(*some, "--name", "Prüfung", **ascii_only) as running:
        assert await running.ends() == 0, running.output
    assert "Name: Pr?fung" in running.lines

    full = ("sh", "-c", 'exec "$@" >/dev/full', "sh")
    async with program(*some, within=full, DATABASE_URL=database_url) as running:
        assert await running.ends() == 1
    lost = "error: standard output cannot be written: No space left on device"
    assert running.lines[-1] == lost
    assert "Traceback" not in running.output
    done = await rows(pool, "select name, state from load_test_run order by created_at")
    assert done == [("Prüfung", "finished"), ("Prüfung", "finished"), (None, "finished")]


def test_help_tells_every_default():
    options = [each for each in _parser()._actions if each.dest != "help"]
    assert [each.dest for each in options if "(default: " not in str(each.help)] == []


async def test_a_run_is_recorded_and_compared(database_url, pool, tmp_path):
    some = ("--commands", "50", "--workers", "1")
    _, running, first = await load_test(database_url, tmp_path, *some, "--name", "base [/x]")
    await rows(  # a run that no machine of today repeats
        pool,
        "update load_test_run set outcome = outcome || '{\"throughput_per_second\": 1e9}'",
    )

    code, running, second = await load_test(
        database_url, tmp_path, *some, "--compare", "base [/x]", "--max-regression", "50"
    )

    assert code == 3, running.output
    assert second["comparison"]["with"] == first["run_id"]
    assert "throughput" in second["comparison"]["regressions"]
    assert "Regression: throughput is worse by" in running.output
    assert "Compared with base [/x]" in running.output
    recorded = await rows(pool, "select name, origin, state from load_test_run order by created_at")
    assert recorded == [("base [/x]", "cli", "finished"), (None, "cli", "finished")]
    by_id = ("--compare", first["run_id"][:18])
    code, running, third = await load_test(database_url, tmp_path, *some, *by_id)
    assert (code, third["comparison"]["with"]) == (0, first["run_id"])
    assert third["comparison"]["differences"] == []
    assert "Both ran with the same settings and versions" in running.output


async def test_what_cannot_be_compared_does_not_pass(database_url, pool, tmp_path):
    some = ("--commands", "20", "--workers", "1")
    _, _, first = await load_test(database_url, tmp_path, *some)
    await rows(
        pool,
        """
        update load_test_run
        set outcome = outcome || '{"run_ms": [null, null, null]}',
            versions = versions || '{"python": "3.0"}'
        """,
    )

    code, running, second = await load_test(
        database_url,
        tmp_path,
        *("--commands", "30", "--workers", "1", "--compare", "last", "--max-regression", "100"),
    )

    assert code == 3, running.output
    assert second["comparison"]["with"] == first["run_id"]
    assert second["comparison"]["unjudged"] == ["run p95"]
    text = "Not judged: run p95 cannot be compared, that run has no figure for it"
    assert text in running.output
    differences = {each["name"]: each for each in second["comparison"]["differences"]}
    assert differences.keys() == {"count", "types: success", "versions: python"}
    assert (differences["count"]["other"], differences["count"]["this"]) == ("20", "30")
    assert "Settings that differ" in running.output


async def record_run(pool, run_id, name):
    """A run in which nothing was done."""
    order = BulkOrder(count=1, batch_id=UUID(run_id))
    await create_run(pool, order, origin=Origin.CLI, name=name)


@pytest.mark.parametrize(
    ("named", "texts"),
    [
        ("nobody", ["There is no run 'nobody'", "8 characters or more"]),
        ("0199aaaabbbb", ["There is no run '0199aaaabbbb'"]),
        (
            "11111111",
            ["The ids of several runs begin with '11111111'", "11111111-1111-7111", "(the other)"],
        ),
        ("the other", ["11111111-2222-7222-8222-222222222222 (the other) has no outcome yet"]),
    ],
)
async def test_nothing_is_done_where_there_is_nothing_to_compare_with(
    database_url, pool, named, texts
):
    await record_run(pool, "11111111-1111-7111-8111-111111111111", None)
    await record_run(pool, "11111111-2222-7222-8222-222222222222", "the other")
    arguments = ("--commands", "10", "--compare", named)
    async with program("load_test.py", *arguments, DATABASE_URL=database_url) as running:
        assert await running.ends() == 1
    for text in texts:
        assert text in running.output
    assert await rows(pool, "select 1 from command_bus_command") == []
    assert len(await rows(pool, "select 1 from load_test_run")) == 2


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
    assert results["deletion"] == {"cancelled": 20, "deleted": 100}
    done = "Cancelled 20 commands in the troubleshooting queue; deleted 100 commands"
    assert f"{done} with their trails; 0 stay" in running.output
    for table in ("test_command", "command_bus_command", "command_bus_audit", "command_bus_tsq"):
        assert await rows(pool, f"select 1 from {table}") == [], table
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


async def test_what_an_interrupted_run_leaves_is_told_and_can_be_cancelled(
    database_url, pool, tmp_path
):
    file = tmp_path / "results.json"
    async with load_test_without_workers(
        database_url, file, "--commands", "20", "--delete"
    ) as running:
        worker = await register(pool)
        taken = await claim(pool, worker, limit=10)
        await settle(pool, worker, *map(completed, taken[:7]))
        await settle(pool, worker, *(failed(each, "permanent") for each in taken[7:]))
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 130
    results = json.loads(file.read_text())
    run_id = results["run_id"]
    assert (results["left"], results["unaccounted"]) == (10, 0)
    assert results["deletion"] == {"cancelled": 3, "deleted": 10}
    for text in (
        "10 commands did not come to an end",
        "python -m app.worker",
        f"/load-tests/{run_id}",
        "Cancelled 3 commands in the troubleshooting queue; deleted 10 commands",
        "10 stay",
    ):
        assert text in running.output

    how = next(line for line in running.lines if "--cancel" in line).split("python ")[1]
    async with program(*how.split(), DATABASE_URL=database_url) as cancelling:
        assert await cancelling.ends() == 0
    assert f"Cancelled 10 commands of run {run_id}" in cancelling.output
    assert await rows(pool, "select distinct status::text from command_bus_command") == [
        ("CANCELLED",)
    ]
    assert await rows(pool, "select * from command_bus.find_violations()") == []


async def test_load_test_cancel_ends_only_waiting_commands(database_url, pool):
    order = BulkOrder(count=1_200, distribution=BehaviorDistribution(success=100.0))
    await create_run(pool, order, origin=Origin.CLI, name="to be cancelled")
    await generate_run(pool, order)
    worker = await register(pool)
    [taken, given_back, delayed] = await claim(pool, worker, limit=3)
    await release(pool, worker, [given_back])
    await settle(pool, worker, failed(delayed, "transient", retry_delay_ms=3_600_000))
    other = BulkOrder(count=1)
    await create_run(pool, other, origin=Origin.CLI)
    await generate_run(pool, other)

    arguments = ("load_test.py", "--cancel", "to be cancelled")
    async with program(*arguments, DATABASE_URL=database_url) as cancelling:
        assert await cancelling.ends() == 0
    assert "Cancelled 1,199 commands of run" in cancelling.output
    assert await rows(pool, "select * from command_bus.find_violations()") == []

    await settle(pool, worker, completed(taken))
    counts = await CommandBus(pool).count_by_status()
    assert {status: n for status, n in counts.items() if n} == {
        CommandStatus.PENDING: 1, CommandStatus.COMPLETED: 1, CommandStatus.CANCELLED: 1_199,
    }  # fmt: skip


async def test_a_run_ends_when_its_waiting_commands_are_cancelled(database_url, pool, tmp_path):
    file = tmp_path / "results.json"
    async with load_test_without_workers(database_url, file, "--commands", "5") as running:
        tsq = TroubleshootingQueue(pool)
        for domain, command_id in await rows(
            pool, "select domain, command_id from command_bus_command"
        ):
            await tsq.cancel_pending(domain, command_id, "ann")
        assert await running.ends() == 0
    results = json.loads(file.read_text())
    assert (results["counts"]["CANCELLED"], results["unaccounted"]) == (5, 0)
    assert (results["p50_ms"], results["throughput_per_second"]) == (None, 0.0)
    outcome = await value(pool, "select outcome from load_test_run")
    assert (outcome["processed"], outcome["throughput_per_second"]) == (0, 0.0)
    assert await value(pool, "select state from load_test_run") == "finished"


@pytest.mark.parametrize("lost", ["one that has ended", "one that waits"])
async def test_a_command_that_is_lost_is_an_error(database_url, pool, tmp_path, lost):
    file = tmp_path / "results.json"
    async with load_test_without_workers(database_url, file, "--commands", "10") as running:
        worker = await register(pool)
        first, second, *others = await claim(pool, worker)
        await settle(pool, worker, *map(completed, [first, *others]))
        victim = first if lost == "one that has ended" else second
        await rows(
            pool,
            "delete from command_bus_command where command_id = %s",
            victim.command.command_id,
        )
        await settle(pool, worker, completed(second))
        if victim is second:  # nobody will ever bring it to its end
            running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 1
    results = json.loads(file.read_text())
    assert (results["unaccounted"], results["left"], results["complete"]) == (1, 0, False)
    assert "1 commands are unaccounted for" in running.output


async def test_a_run_goes_on_when_the_server_ends_its_connections(database_url, pool, tmp_path):
    file = tmp_path / "results.json"
    async with load_test_without_workers(database_url, file, "--commands", "5") as running:
        ended = await rows(
            pool,
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'commandbus load test'",
        )
        assert ended
        worker = await register(pool)
        await settle(pool, worker, *map(completed, await claim(pool, worker)))
        assert await running.ends() == 0
    assert json.loads(file.read_text())["counts"]["COMPLETED"] == 5


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
        (["--mix", "success=90,explode=10"], "argument --mix: explode: Input should be one of"),
        (["--mix", "success"], "argument --mix: must be like success=90,"),
        (["--mix", "success=100", "--success-pct", "100"], "not both"),
        (["--success-pct", "101"], "from 0 to 100"),
        (["--max-regression", "5"], "needs --compare"),
        (["--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
        (["--json", "/"], "--json needs the name of a file, and / is a folder"),
        (["--name", "two\nlines"], "printable"),
    ],
)
async def test_wrong_options_are_refused(arguments, text):
    async with program("load_test.py", *arguments) as running:
        assert await running.ends() == 2
    assert text in running.output
    assert "Traceback" not in running.output
