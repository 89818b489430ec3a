"""S025: generating load through the API, and measuring what becomes of it."""

from __future__ import annotations

import math

import pytest

from commandbus import TroubleshootingQueue
from tests.e2e.served import served
from tests.facts import rows
from tests.waiting import eventually

MIX = {"success": 90, "fail_transient_then_succeed": 5, "fail_permanent": 5}


async def test_a_thousand_commands_are_created_queued_and_timed(database_url):
    async with served(database_url) as web:
        created = await web.post("/api/v1/commands/bulk", {"count": 1000})
        stats = await web.get("/api/v1/stats")

    assert created["created"] == 1000
    assert len(created["command_ids"]) == 100
    assert created["generation_time_ms"] >= 0
    assert created["queue_time_ms"] >= 0
    assert stats["counts"]["PENDING"] == 1000
    assert stats["metrics"]["queue_depth"] == 1000


async def test_mixed_behaviours_end_as_they_should_and_the_metrics_say_so(database_url):
    async with served(database_url, "--workers", "2", RETRY_BASE_DELAY_MS="50") as web:
        run = await web.post(
            "/api/v1/commands/bulk",
            {"count": 400, "behavior_distribution": MIX, "delay_ms": 10},
        )

        async def progress() -> dict[str, float]:
            path = f"/api/v1/stats/load-test?run_id={run['run_id']}"
            answer: dict[str, float] = await web.get(path)
            return answer

        done = await eventually(progress, lambda seen: seen["pending"] == 0, seconds=60)
        throughput = await web.get("/api/v1/stats/throughput?window_seconds=300")

    assert (done["total_commands"], done["completed"], done["in_tsq"]) == (400, 380, 20)
    assert (done["failed"], done["progress_percent"]) == (0, 100)
    assert throughput["commands_processed"] == 400
    assert math.isclose(throughput["throughput_per_second"], 400 / 300, abs_tol=0.1)
    assert throughput["avg_processing_time_ms"] >= 10
    assert 10 <= throughput["p50_ms"] <= throughput["p95_ms"] <= throughput["p99_ms"]
    assert (throughput["active_workers"], throughput["queue_depth"]) == (2, 0)


async def test_a_run_that_nobody_looks_at_is_recorded_and_both_reports_agree(database_url, pool):
    async with served(database_url, "--workers", "1") as web:
        run_id = (await web.post("/api/v1/commands/bulk", {"count": 50}))["run_id"]
        query = "select outcome from load_test_run where finished_at is not null"
        [[outcome]] = await eventually(lambda: rows(pool, query))
        progress = await web.get(f"/api/v1/stats/load-test?run_id={run_id}")

    assert outcome["counts"]["COMPLETED"] == 50
    for name in ("elapsed_seconds", "throughput_per_second"):
        assert progress[name] == pytest.approx(outcome[name], rel=0.01), name


async def test_a_run_that_was_cancelled_whole_is_over(database_url, pool):
    async with served(database_url) as web:
        run_id = (await web.post("/api/v1/commands/bulk", {"count": 3}))["run_id"]
        for (command_id,) in await rows(pool, "select command_id from command_bus_command"):
            await TroubleshootingQueue(pool).cancel_pending("test", command_id)
        progress = await web.get(f"/api/v1/stats/load-test?run_id={run_id}")
        [[outcome]] = await rows(pool, "select outcome from load_test_run")

    assert (progress["pending"], progress["failed"], progress["throughput_per_second"]) == (0, 3, 0)
    assert progress["elapsed_seconds"] == outcome["elapsed_seconds"]


async def test_a_run_whose_web_process_is_killed_ends_as_failed(database_url, pool):
    async with served(database_url) as web:
        run = await web.post("/api/v1/commands/bulk", {"count": 1_000_000}, status=202)
        path = f"/load-tests/{run['run_id']}"

        async def sent() -> int:
            return int((await web.get(f"/api/v1{path}"))["counts"].get("PENDING", 0))

        await eventually(sent)
        web.running.process.kill()
        await web.running.ends()

    async with served(database_url) as other:
        # Half a minute of silence, during which nobody generates any more.
        await rows(pool, "update load_test_run set heartbeat_at = now() - interval '1 minute'")
        found = await other.get(f"/api/v1{path}")
        page = await other.get(path)

    assert (found["state"], found["cancel_requested_at"]) == ("failed", None)
    assert 0 < found["counts"]["PENDING"] < 1_000_000
    assert found["counts"]["PENDING"] >= found["generated_count"]
    assert "Generating stopped early: its process ended" in page
    assert "No more commands are sent; they wait for workers." in page
    assert "Stop generating" not in page
