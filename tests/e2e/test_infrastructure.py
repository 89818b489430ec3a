"""S017: the application starts, its tables are there, and its worker does what behaviours say."""

from __future__ import annotations

import pytest

from commandbus import CommandStatus
from tests.e2e.served import served
from tests.facts import rows
from tests.waiting import eventually

EXPECTED = {
    "success": "COMPLETED",
    "fail_permanent": "IN_TSQ",
    "fail_transient": "IN_TSQ",
    "fail_transient_then_succeed": "COMPLETED",
    "timeout": "COMPLETED",
    "fail_business": "FAILED",
}


async def test_the_home_page_loads_with_sidebar_navigation(database_url):
    async with served(database_url) as web:
        page = await web.get("/")

    assert 'id="sidebar"' in page
    for target in ("/send", "/commands", "/troubleshooting", "/audit"):
        assert f'href="{target}"' in page


@pytest.mark.parametrize(
    "name",
    [
        "command_bus_command",
        "command_bus_audit",
        "pgmq.q_test__commands",
        "pgmq.q_test__replies",
        "test_command",
        "app_config",
        "flyway_schema_history",
    ],
)
async def test_migrations_made_the_table(pool, name):
    assert await rows(pool, "select to_regclass(%s) is not null", name) == [(True,)]


async def test_each_behaviour_ends_as_specified(database_url):
    settings = {"RETRY_BASE_DELAY_MS": "50", "WORKER_VISIBILITY_TIMEOUT": "1"}
    async with served(database_url, "--worker", **settings) as web:
        ids = {
            kind: (
                await web.post(
                    "/api/v1/commands",
                    {"behavior": {"type": kind, "execution_time_ms": 3000}}
                    if kind == "timeout"
                    else {"behavior": {"type": kind}},
                )
            )["command_id"]
            for kind in EXPECTED
        }

        async def statuses() -> dict[str, str]:
            return {
                kind: (await web.get(f"/api/v1/commands/{command_id}"))["status"]
                for kind, command_id in ids.items()
            }

        assert await eventually(statuses, lambda seen: seen == EXPECTED, seconds=30) == EXPECTED


async def test_counts_on_the_dashboard_s_api_are_those_of_the_rows(database_url, pool):
    async with served(database_url, "--worker") as web:
        for _ in range(5):
            await web.post("/api/v1/commands/quick", {})

        async def completed() -> int:
            return int((await web.get("/api/v1/stats"))["counts"]["COMPLETED"])

        await eventually(completed, lambda seen: seen == 5)
    assert await rows(pool, "select distinct status from command_bus_command") == [
        (CommandStatus.COMPLETED.value,)
    ]
