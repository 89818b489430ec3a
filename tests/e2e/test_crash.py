"""Nothing is lost and nothing is done twice when a worker is killed in the middle."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter

import psutil

from tests.e2e.served import served
from tests.facts import rows
from tests.waiting import eventually

COUNT = 1000
# How each behaviour ends, with a budget that outlasts what a crash costs.
MIX = {
    "success": ("COMPLETED", 70),
    "fail_transient_then_succeed": ("COMPLETED", 15),
    "fail_permanent": ("IN_TSQ", 10),
    "fail_business": ("FAILED", 5),
}
SETTINGS = {
    "RETRY_BASE_DELAY_MS": "50",
    "WORKER_VISIBILITY_TIMEOUT": "2",
    "RETRY_MAX_ATTEMPTS": "6",
}


async def test_a_thousand_mixed_commands_survive_a_killed_worker(database_url, pool):
    behaviors = [kind for kind, (_, share) in MIX.items() for _ in range(share * COUNT // 100)]
    random.Random(7).shuffle(behaviors)
    expected: dict[str, str] = {}

    async with served(database_url, "--workers", "2", **SETTINGS) as web:
        for index, kind in enumerate(behaviors):
            if index == COUNT // 2:
                [first, *_] = psutil.Process(web.running.pid).children()
            sent = await web.post(
                "/api/v1/commands", {"behavior": {"type": kind, "execution_time_ms": 5}}
            )
            expected[sent["command_id"]] = MIX[kind][0]
            if index == COUNT // 2:
                os.kill(first.pid, signal.SIGKILL)

        async def open_commands() -> int:
            counts = (await web.get("/api/v1/stats"))["counts"]
            return int(counts["PENDING"] + counts["IN_PROGRESS"])

        await eventually(open_commands, lambda count: count == 0, seconds=60)
        counts = (await web.get("/api/v1/stats"))["counts"]

    stored: dict[str, str] = dict(
        await rows(pool, "select command_id::text, status::text from command_bus_command")
    )
    assert stored == expected
    assert Counter(counts) == Counter(expected.values())
    closing = await rows(
        pool,
        "select command_id from command_bus_audit where event_type in ('COMPLETED', 'MOVED_TO_TSQ')"
        " group by command_id having count(*) > 1",
    )
    assert closing == []
    assert await rows(pool, "select 1 from pgmq.q_test__commands") == []
    assert await rows(pool, "select * from command_bus.find_violations()") == []
