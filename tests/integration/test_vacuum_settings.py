"""Tables that rows leave are vacuumed early, in every domain."""

from __future__ import annotations

from tests.facts import rows
from tests.integration.pruning import TABLES

QUEUES = ("commands", "replies")


async def test_queues_of_new_domains_are_vacuumed_like_those_of_the_first(pool, bus):
    await bus.create_domain("other")
    settings: dict[str, list[str]] = dict(
        await rows(
            pool,
            "select relname, reloptions from pg_class where relkind = 'r' and relname = any (%s)",
            [f"q_{domain}__{kind}" for domain in ("test", "other") for kind in QUEUES],
        )
    )

    assert len(settings) == 4
    assert {tuple(each) for each in settings.values()} == {
        (
            "autovacuum_vacuum_scale_factor=0",
            "autovacuum_vacuum_threshold=5000",
            "autovacuum_vacuum_cost_delay=0",
        )
    }


async def test_no_table_waits_for_a_fifth_of_it_to_be_dead(pool):
    """Every table that loses rows at the rate of commands is vacuumed long before."""
    late = await rows(
        pool,
        """
        select c.relname from pg_class as c
        where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace
            and c.relname = any (%s) and not exists (
                select from unnest(c.reloptions) as o
                where split_part(o, '=', 1) = 'autovacuum_vacuum_scale_factor'
                    and split_part(o, '=', 2)::float8 <= 0.05
            )
        """,
        [*TABLES, "command_bus_delta", "command_bus_second", "command_bus_batch", "test_command"],
    )

    assert late == []
