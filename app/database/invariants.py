"""What must hold at every moment, checked over the rows in one snapshot.

`command_bus.find_violations()` does the work; it reads everything, so its cost grows with the
tables. Only one check runs at a time, for at most CHECK_SECONDS.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from commandbus import CommandBus

CHECK_SECONDS = 60
PATIENCE_SECONDS = CHECK_SECONDS + 10.0
"""How long a caller waits for a check; the server stops it before that."""
SHOWN_VIOLATIONS = 50

_ONE_AT_A_TIME = int.from_bytes(b"invaria")


class CheckRunningError(Exception):
    """Another check is running, here or elsewhere."""


class CheckTooLongError(Exception):
    """The check was stopped after CHECK_SECONDS; it says nothing about the invariants."""


class Concern(StrEnum):
    """What the id of a violation names."""

    COMMAND = "command"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Invariant:
    """One thing that must hold."""

    name: str
    """As the database names it."""
    meaning: str
    concern: Concern = Concern.COMMAND
    title: str = ""
    """As pages name it; empty: by its name."""


@dataclass(frozen=True, slots=True)
class Group:
    """Invariants of one kind."""

    title: str
    invariants: tuple[Invariant, ...]


GROUPS = (
    Group(
        "Nothing is lost",
        (
            Invariant(
                "what is open is carried by exactly one message or waiting row",
                "Each command that has not ended is in the queue, waits for its time or in its"
                " lane, or is parked, and only once. So it will be run, and not twice. If somebody"
                " took its message away, command_bus.requeue_lost_commands gives it a new one.",
                title="Every open command is queued exactly once",
            ),
            Invariant(
                "nothing waits for a command that is not PENDING",
                "Only pending commands wait for a retry or a scheduled time.",
                title="Only pending commands wait",
            ),
            Invariant(
                "every domain has its queues",
                "PGMQ's tables for messages, replies and the archive exist. If somebody dropped a"
                " queue, pgmq.create makes it again, and command_bus.requeue_lost_commands gives"
                " its commands new messages.",
            ),
        ),
    ),
    Group(
        "Lanes go on in order",
        (
            Invariant(
                "a place in a lane is that of a PENDING command",
                "What waits in a lane is a command that has not begun.",
            ),
            Invariant(
                "a slot of a lane is that of an open command",
                "What has ended is in nobody's way.",
            ),
            Invariant(
                "what a lane has let go holds a slot",
                "Each command of a lane that is on its way counts for the lane's limit.",
            ),
            Invariant(
                "a lane that can go on is marked",
                "No lane is forgotten. Where somebody truncated a table of lanes,"
                " python -m app.database recount sets it right.",
            ),
            Invariant(
                "counters of lanes equal a recount",
                "The numbers of what waits in each group are those that counting gives.",
            ),
        ),
    ),
    Group(
        "Every step was allowed",
        (
            Invariant(
                "the trail is a path of the state table",
                "Each audit event is allowed after the one before it.",
                title="Every step was a legal transition",
            ),
            Invariant(
                "the trail ends where the command is",
                "The last event fits the status.",
            ),
            Invariant(
                "each event belongs to a command",
                "No event is left behind without its command.",
            ),
            Invariant(
                "what a handler sent, it sent with its success",
                "A command that has a cause was sent when that one completed, and not otherwise.",
            ),
            Invariant(
                "attempts stay within the budget",
                "No command had more attempts than its own limit.",
            ),
        ),
    ),
    Group(
        "Lists are complete",
        (
            Invariant(
                "the troubleshooting queue lists what is IN_TSQ",
                "The queue holds the commands with status IN_TSQ, and no others.",
            ),
            Invariant(
                "failed and cancelled commands are listed",
                "The list holds the commands with status FAILED or CANCELLED, and no others.",
            ),
            Invariant(
                "groups of failures count what is in the queue",
                "The count of each group equals its commands in the queue.",
            ),
        ),
    ),
    Group(
        "Numbers are right",
        (
            Invariant(
                "counters equal a recount",
                "The counts by status equal the rows. If somebody changed the tables by hand,"
                " python -m app.database recount sets them right.",
            ),
            Invariant(
                "batch counters equal a recount",
                "The progress of each run equals the statuses of its commands.",
                Concern.BATCH,
            ),
            Invariant(
                "histograms hold each processed command once",
                "Percentiles count every processed command, each once.",
            ),
            Invariant(
                "worker totals equal a recount",
                "What each worker counted equals its events in the trails.",
            ),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be."""

    domain: str | None
    subject_id: UUID | None
    detail: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What the check says of one invariant."""

    invariant: Invariant
    count: int
    violations: list[Violation]
    """The first SHOWN_VIOLATIONS of them."""


@dataclass(frozen=True, slots=True)
class Report:
    """The answer of one check."""

    checked_at: datetime
    seconds: float
    findings: list[Finding]
    """One for each invariant, in the order of GROUPS; those that only the database knows last."""

    @property
    def count(self) -> int:
        """How many violations there are."""
        return sum(finding.count for finding in self.findings)

    @property
    def holds(self) -> bool:
        """Whether everything is as it must be."""
        return self.count == 0

    def finding(self, name: str) -> Finding:
        """What the check says of the invariant with this name."""
        return next(each for each in self.findings if each.invariant.name == name)

    def unknown(self) -> list[Finding]:
        """Findings of invariants that this version does not describe."""
        known = {invariant.name for group in GROUPS for invariant in group.invariants}
        return [each for each in self.findings if each.invariant.name not in known]


async def check(
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]], *, seconds: int = CHECK_SECONDS
) -> Report:
    """Check everything over one snapshot, in a transaction that writes nothing.

    Raises CheckRunningError while another check runs, CheckTooLongError after *seconds*.
    """
    started = time.monotonic()
    async with pool.connection() as conn, conn.transaction():
        await conn.execute("set transaction isolation level repeatable read, read only")
        checked_at = await CommandBus.server_time(conn)
        await conn.execute(
            "select set_config('statement_timeout', %s, true)", (f"{int(seconds * 1000)}ms",)
        )
        cur = await conn.execute("select pg_try_advisory_xact_lock(%s)", (_ONE_AT_A_TIME,))
        if await cur.fetchone() != (True,):
            raise CheckRunningError
        try:
            cur = await conn.execute(
                """
                select invariant, n, domain, command_id, detail
                from (
                    select *, count(*) over (partition by invariant) as n,
                        row_number() over (partition by invariant) as position
                    from command_bus.find_violations()
                ) as found
                where position <= %s
                order by invariant, position
                """,
                (SHOWN_VIOLATIONS,),
            )
        except psycopg.errors.QueryCanceled as exc:
            raise CheckTooLongError(f"not finished after {seconds} s") from exc
        rows = await cur.fetchall()
    return Report(checked_at, time.monotonic() - started, _findings(rows))


def _findings(rows: Iterable[TupleRow]) -> list[Finding]:
    counts: dict[str, int] = {}
    violations: dict[str, list[Violation]] = {}
    for name, count, domain, subject_id, detail in rows:
        counts[name] = count
        violations.setdefault(name, []).append(Violation(domain, subject_id, detail))
    known = [invariant for group in GROUPS for invariant in group.invariants]
    unknown = [Invariant(name, "") for name in counts if name not in {each.name for each in known}]
    return [
        Finding(each, counts.get(each.name, 0), violations.get(each.name, []))
        for each in (*known, *unknown)
    ]
