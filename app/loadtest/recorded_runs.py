"""Runs as they are recorded: found by what people call them, and counted by their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from psycopg.rows import class_row

from app.database.pools import Pool
from app.loadtest.runs import settle_runs
from app.models.search_texts import id_text
from app.visible import visible
from commandbus.pools import autocommit

SHORTEST_ID = 8
NAMED_AT_MOST = 3
"""How many runs an error names when the beginning of an id fits several."""


class RunNotFoundError(Exception):
    """A text names no run, or several; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run as it was begun, and what came of it."""

    run_id: UUID
    name: str | None
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]
    outcome: Mapping[str, Any] | None
    """Counts, rates and percentiles; None until every command has ended."""

    @property
    def conditions(self) -> dict[str, Any]:
        """What two runs must share to be comparable: settings, and versions."""
        return {**self.settings, "versions": dict(self.versions)}

    def __str__(self) -> str:
        return f"{self.run_id} ({visible(self.name)})" if self.name else str(self.run_id)


async def find_run(pool: Pool, text: str) -> RecordedRun:
    """The latest run that *text* names: `last`, a name, an id, the beginning of one, or its ends.

    Of an id at least SHORTEST_ID digits are given. Raises RunNotFoundError where no run is named
    so, or several have such an id.
    """
    async with autocommit(pool) as conn, conn.cursor(row_factory=class_row(RecordedRun)) as cur:
        await cur.execute(
            """
            select run_id, name, settings, versions, outcome
            from public.load_test_run
            where %(text)s = 'last' or name = %(text)s
            order by created_at desc, run_id desc
            limit 1
            """,
            {"text": text},
        )
        if (named := await cur.fetchone()) is not None:
            return named
        ids = id_text(text)
        if ids is None or ids.digits < SHORTEST_ID:
            raise RunNotFoundError(
                f"There is no run {text!r}; the beginning of an id has {SHORTEST_ID} characters"
                " or more"
            )
        await cur.execute(
            """
            select run_id, name, settings, versions, outcome
            from public.load_test_run
            where run_id between %s and %s
                and right(replace(run_id::text, '-', ''), length(%s)) = %s
            order by created_at desc, run_id desc
            limit %s
            """,
            (ids.first, ids.last, ids.tail, ids.tail, NAMED_AT_MOST + 1),
        )
        found = await cur.fetchall()
    if not found:
        raise RunNotFoundError(f"There is no run {text!r}")
    if len(found) > 1:
        raise RunNotFoundError(_ambiguous(text, found))
    return found[0]


def _ambiguous(text: str, found: list[RecordedRun]) -> str:
    named = ", ".join(map(str, found[:NAMED_AT_MOST]))
    more = ", and more" if len(found) > NAMED_AT_MOST else ""
    return f"The ids of several runs begin with {text!r}: {named}{more}; give more of the id"


async def get_recorded(pool: Pool, run_id: UUID) -> RecordedRun | None:
    """A run, its outcome included where its commands have ended by now; None where it is none."""
    await settle_runs(pool)
    async with autocommit(pool) as conn, conn.cursor(row_factory=class_row(RecordedRun)) as cur:
        await cur.execute(
            "select run_id, name, settings, versions, outcome from public.load_test_run"
            " where run_id = %s",
            (run_id,),
        )
        return await cur.fetchone()


class RowCount(NamedTuple):
    """How many commands of a run have a row."""

    there: int
    """Those that had one until it was pruned are among them."""
    open: int
    """Those that have not come to an end."""


async def count_rows(pool: Pool, run_id: UUID) -> RowCount:
    """The commands of a run by their rows: the counters of a batch cannot know of one that is lost.

    Reads the index by creation for as long as the run was generated: 60 ms for 300,000 commands in
    memory.
    """
    async with autocommit(pool) as conn:
        cur = await conn.execute(
            """
            with found as (
                select count(*) as there,
                    count(*) filter (where c.status in ('PENDING', 'IN_PROGRESS')) as open
                from public.load_test_run as r
                join public.command_bus_command as c
                    on c.created_at between r.created_at - interval '1 minute'
                        and coalesce(r.generated_at, clock_timestamp()) + interval '1 minute'
                where r.run_id = %(run_id)s and c.batch_id = %(run_id)s
            ),
            gone as (
                select coalesce(sum(g.pruned), 0)::bigint as pruned
                from (
                    select pruned from public.command_bus_batch where batch_id = %(run_id)s
                    union all
                    select pruned from public.command_bus_delta where batch_id = %(run_id)s
                ) as g
            )
            select found.there + gone.pruned, found.open from found, gone
            """,
            {"run_id": run_id},
        )
        row = await cur.fetchone()
    assert row is not None  # two numbers, whatever is there
    return RowCount(*row)
