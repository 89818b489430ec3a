"""What in the database decides how fast and how safely the bus runs, and what to do about it.

One look costs a few milliseconds at any number of commands: it reads the server's own statistics.
A role without pg_read_all_stats sees only its own sessions; what it cannot see is `unknown`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, dict_row
from psycopg_pool import PoolTimeout

from app.database.pools import Pool
from commandbus.errors import one_line
from commandbus.pools import autocommit

logger = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
SHOWN_NAMES = 5


class Level(StrEnum):
    """How much it matters."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on a figure is a warning, and from where on it is critical."""

    warning: float
    critical: float

    def level(self, value: float) -> Level:
        """The level of *value*."""
        if value >= self.critical:
            return Level.CRITICAL
        return Level.WARNING if value >= self.warning else Level.OK


# An old snapshot keeps dead rows in the queue from being removed; measured, processing fell to an
# eighth within 15 seconds. Short ones are everyday, so the warning comes a little later.
OLDEST_SNAPSHOT_SECONDS = Limits(30, 300)
# A claim walks past the dead rows at the head of its queue; measured, a million cost a fifth to a
# third of the throughput. Two for each command gather between two looks of autovacuum, so at a
# few thousand commands a second hundreds of thousands are everyday.
DEAD_QUEUE_ROWS = Limits(500_000, 5_000_000)
# A full notification queue makes every sender fail; it fills up when a listener is in an open
# transaction.
NOTIFY_QUEUE_PERCENT = Limits(25, 75)
# Of autovacuum_freeze_max_age: at 100 % PostgreSQL starts to freeze on its own; far above, it is
# held back by something, and at 2 billion transactions the server stops writing.
TRANSACTION_AGE_PERCENT = Limits(150, 500)
CONNECTIONS_PERCENT = Limits(80, 95)


@dataclass(frozen=True, slots=True)
class Check:
    """One figure that was looked at."""

    name: str
    title: str
    level: Level
    value: float | None
    """None where the role may not see it."""
    unit: str
    limit: float | None
    """From where on it is a warning; None where it is either right or not."""
    detail: str
    """What was found, in a sentence."""
    advice: str
    """What to do about it; empty where nothing is to be done."""

    @property
    def is_finding(self) -> bool:
        """Whether an operator should know."""
        return self.level in (Level.WARNING, Level.CRITICAL)


async def examine(conn: AsyncConnection[TupleRow]) -> list[Check]:
    """Look at everything once; raises psycopg's errors."""
    async with conn.cursor(row_factory=dict_row) as cur:
        await cur.execute(_LOOK)
        row = await cur.fetchone()
        assert row is not None  # it is one row of subqueries
        try:
            await cur.execute(_LOOK_AT_QUEUES)
            queues = await cur.fetchone()
        except psycopg.errors.ProgrammingError:
            queues = None  # no right to, or no bus to look at
    return [
        _writable(row),
        _queues(queues),
        _ahead_of_time(queues),
        _oldest_snapshot(row),
        _dead_rows(row),
        _notifications(row),
        _transaction_age(row),
        _connections(row),
        _durability(row),
        _logged(row),
    ]


async def look(pool: Pool) -> list[Check]:
    """`examine` on a connection of *pool*."""
    async with autocommit(pool) as conn:
        return await examine(conn)


def findings(checks: Sequence[Check]) -> list[Check]:
    """Those that an operator should know, the worst first."""
    found = [check for check in checks if check.is_finding]
    return sorted(found, key=lambda check: check.level is not Level.CRITICAL)


def _writable(row: dict[str, Any]) -> Check:
    why = ""
    if row["is_standby"]:
        why = "The server is a standby."
    elif row["read_only"]:
        why = "default_transaction_read_only is on."
    return Check(
        "read_only", "Read-only", Level.CRITICAL if why else Level.OK, float(bool(why)), "", None,
        f"{why} Nothing can be sent, claimed or changed." if why else "Changes are taken.",
        "Let DATABASE_URL lead to the primary server; where a provider has set this because the"
        " disk is full, make room and set it back. Workers go on by themselves then."
        if why else "",
    )  # fmt: skip


def _queues(row: dict[str, Any] | None) -> Check:
    if row is None:
        return _unseen("missing_queues", "Missing queues", "tables")
    missing = row["missing_queues"] or []
    return Check(
        "missing_queues", "Missing queues", Level.CRITICAL if missing else Level.OK,
        float(len(missing)), "tables", None,
        f"{some_of(missing)}." if missing else "Every domain has its queues.",
        "Somebody dropped or renamed them. Rename them back; or select pgmq.create('…') and"
        " command_bus.requeue_lost_commands(domain); or delete the domain: python -m app.database"
        " delete-domain."
        if missing else "",
    )  # fmt: skip


def _ahead_of_time(row: dict[str, Any] | None) -> Check:
    if row is None:
        return _unseen("ahead_of_time", "Ahead of time", "commands")
    found = row["ahead_of_time"] or []
    return Check(
        "ahead_of_time", "Ahead of time", Level.CRITICAL if found else Level.OK,
        float(row["ahead_of_time_count"] or 0), "commands", None,
        f"Nobody can take for a long while: {some_of(found)}." if found
        else "No command is held back by a clock.",
        "The clock of the database's server went back, or somebody read the messages by hand. Once"
        " the clock is right: select * from command_bus.mend_clock()."
        if found else "",
    )  # fmt: skip


def _unseen(name: str, title: str, unit: str) -> Check:
    return Check(
        name, title, Level.UNKNOWN, None, unit, None, "This role may not look at the queues.", ""
    )


def some_of(names: Sequence[str]) -> str:
    """The first of *names*, and how many more there are."""
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _oldest_snapshot(row: dict[str, Any]) -> Check:
    age, who = row["snapshot_seconds"], row["snapshot_holder"]
    if age is None and not row["sees_all"]:
        return _unknown("oldest_snapshot", "Oldest transaction", "s", OLDEST_SNAPSHOT_SECONDS)
    level = OLDEST_SNAPSHOT_SECONDS.level(age or 0)
    return Check(
        "oldest_snapshot", "Oldest transaction", level, age or 0.0, "s",
        OLDEST_SNAPSHOT_SECONDS.warning,
        f"Open for {age:,.0f} s: {who}." if age and age >= 1 else "None is open for long.",
        "End it (select pg_terminate_backend(pid)), or the prepared transaction or replication slot"
        " that it is. While it is open, dead rows stay in the queues and processing slows down."
        if level is not Level.OK else "",
    )  # fmt: skip


def _dead_rows(row: dict[str, Any]) -> Check:
    dead, table = row["dead_rows"] or 0, row["dead_table"]
    level = DEAD_QUEUE_ROWS.level(dead)
    return Check(
        "dead_queue_rows", "Dead rows in a queue", level, dead, "rows", DEAD_QUEUE_ROWS.warning,
        f"{dead:,} in {table}." if dead else "None.",
        "Autovacuum does not keep up: look for an old transaction first, then lower"
        " autovacuum_naptime to 15 s or raise autovacuum_max_workers."
        if level is not Level.OK else "",
    )  # fmt: skip


def _notifications(row: dict[str, Any]) -> Check:
    percent = row["notify_usage"] * 100
    level = NOTIFY_QUEUE_PERCENT.level(percent)
    return Check(
        "notification_queue", "Notification queue", level, round(percent, 1), "%",
        NOTIFY_QUEUE_PERCENT.warning, f"{percent:.1f}% used.",
        "A session that listens stays in a transaction; end it before the queue is full, when"
        " every send fails." if level is not Level.OK else "",
    )  # fmt: skip


def _transaction_age(row: dict[str, Any]) -> Check:
    percent = 100 * row["transaction_age"] / row["freeze_max_age"]
    level = TRANSACTION_AGE_PERCENT.level(percent)
    return Check(
        "transaction_age", "Transaction id age", level, round(percent, 1), "%",
        TRANSACTION_AGE_PERCENT.warning,
        f"{row['transaction_age']:,} transactions, {percent:.0f}% of autovacuum_freeze_max_age.",
        "Vacuum does not freeze old rows: look for old transactions, prepared transactions and"
        " replication slots, then vacuum (freeze)." if level is not Level.OK else "",
    )  # fmt: skip


def _connections(row: dict[str, Any]) -> Check:
    used, most = row["connections"], row["max_connections"]
    percent = 100 * used / most
    level = CONNECTIONS_PERCENT.level(percent)
    return Check(
        "connections", "Connections", level, used, f"of {most}",
        float(round(most * CONNECTIONS_PERCENT.warning / 100)), f"{used} of {most} are used.",
        "Run fewer processes, or raise max_connections: a worker needs up to 9, a web process up"
        " to 25." if level is not Level.OK else "",
    )  # fmt: skip


def _durability(row: dict[str, Any]) -> Check:
    names = ("fsync", "full_page_writes", "synchronous_commit")
    off = [name for name in names if row[name] == "off"]
    detail = "What was acknowledged outlives a crash."
    if off:
        detail = f"{' and '.join(off)} {'is' if len(off) == 1 else 'are'} off."
    return Check(
        "durability", "Durability", Level.CRITICAL if off else Level.OK, float(len(off)), "off",
        None, detail,
        "A crash of the server can lose commands that were acknowledged, or damage the database."
        " Switch it on, unless this is a test." if off else "",
    )  # fmt: skip


def _logged(row: dict[str, Any]) -> Check:
    unlogged = row["unlogged"] or []
    return Check(
        "unlogged_tables", "Unlogged tables", Level.CRITICAL if unlogged else Level.OK,
        float(len(unlogged)), "tables", None,
        f"{', '.join(unlogged)}." if unlogged else "None.",
        "A crash of the server empties them: alter table … set logged." if unlogged else "",
    )  # fmt: skip


def _unknown(name: str, title: str, unit: str, limits: Limits) -> Check:
    return Check(
        name, title, Level.UNKNOWN, None, unit, limits.warning,
        "This role does not see other sessions.",
        "Grant it pg_read_all_stats to have this watched.",
    )  # fmt: skip


class HealthWatch:
    """Tells the log of a process when a finding appears, and when it is gone; not each time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: dict[str, Level] = {}

    async def run(self, *, every: float = LOOK_SECONDS) -> None:
        """Look now and *every* so many seconds, until cancelled.

        That the database cannot be asked is for others to tell.
        """
        while True:
            try:
                self.tell(await look(self._pool))
            except (psycopg.Error, PoolTimeout) as exc:
                logger.info("database_health_not_seen", extra={"error": one_line(exc)})
            await asyncio.sleep(every)

    def tell(self, checks: Sequence[Check]) -> None:
        """Log what has changed since the last look."""
        now = {check.name: check.level for check in checks if check.is_finding}
        for check in checks:
            before = self._known.get(check.name)
            if check.is_finding and before is not check.level:
                logger.log(
                    logging.ERROR if check.level is Level.CRITICAL else logging.WARNING,
                    "database_health",
                    extra={
                        "check": check.name,
                        "level": check.level.value,
                        "detail": check.detail,
                        "advice": check.advice,
                    },
                )
            elif before is not None and not check.is_finding:
                logger.info("database_health_restored", extra={"check": check.name})
        self._known = now


# Sessions of other databases hold nothing back here; standbys and prepared transactions do.
_LOOK = """
with snapshot as (
    select extract(epoch from clock_timestamp() - a.xact_start)::float8 as seconds,
        format('pid %s (%s, %s)', a.pid,
               coalesce(nullif(a.application_name, ''), 'unnamed'), a.state) as holder
    from pg_stat_activity as a
    where a.xact_start is not null and a.pid <> pg_backend_pid()
        and a.backend_type in ('client backend', 'walsender')
        and (a.backend_xmin is not null or a.backend_xid is not null)
        and (a.datname = current_database() or a.backend_type = 'walsender')
    union all
    select extract(epoch from clock_timestamp() - p.prepared)::float8,
        format('prepared transaction %s', p.gid)
    from pg_prepared_xacts as p
    where p.database = current_database()
    order by 1 desc
    limit 1
),
queue as (
    select s.n_dead_tup as dead, format('%s.%s', s.schemaname, s.relname) as name
    from pg_stat_user_tables as s
    where s.schemaname = 'pgmq' and s.relname ^@ 'q_'
    order by s.n_dead_tup desc
    limit 1
)
select pg_is_in_recovery() as is_standby,
    current_setting('default_transaction_read_only')::boolean as read_only,
    (select seconds from snapshot) as snapshot_seconds,
    (select holder from snapshot) as snapshot_holder,
    pg_has_role(current_user, 'pg_read_all_stats', 'usage') as sees_all,
    (select dead from queue) as dead_rows,
    (select name from queue) as dead_table,
    pg_notification_queue_usage() as notify_usage,
    (select max(age(datfrozenxid)) from pg_database) as transaction_age,
    current_setting('autovacuum_freeze_max_age')::bigint as freeze_max_age,
    (select count(*) from pg_stat_activity where backend_type = 'client backend') as connections,
    current_setting('max_connections')::integer as max_connections,
    current_setting('fsync') as fsync,
    current_setting('full_page_writes') as full_page_writes,
    current_setting('synchronous_commit') as synchronous_commit,
    (
        select array_agg(c.oid::regclass::text order by c.oid::regclass::text)
        from pg_class as c
        where c.relkind = 'r' and c.relpersistence = 'u'
            and (
                c.relnamespace = to_regnamespace('pgmq') and c.relname ^@ 'q_'
                or c.relnamespace = 'public'::regnamespace and c.relname ^@ 'command_bus_'
            )
    ) as unlogged
"""

_LOOK_AT_QUEUES = """
with ahead as materialized (
    select a.n, format('%s%s %s in %s until %s UTC',
                       case when a.n >= 1000 then 'at least ' else '' end, a.n, a.kind, a.domain,
                       to_char(a.until at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS')) as text
    from command_bus.find_ahead_of_time() as a
)
select (select array_agg(m.missing) from command_bus.missing_queues() as m) as missing_queues,
    (select array_agg(text) from ahead) as ahead_of_time,
    (select sum(n)::float8 from ahead) as ahead_of_time_count
"""
