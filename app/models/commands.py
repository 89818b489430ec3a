"""The list of commands: filters, search, pages and totals at any number of commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.loadtest.runs import SILENT_SECONDS, RunState
from app.models.base import db
from app.models.load_test_runs import get_run
from app.models.paging import SCAN_LIMIT, Condition, Key, Listing, Source, Total, Window
from app.models.search import CANDIDATE_LIMIT, candidates, sees_all_retries
from app.models.tables import (
    Command,
    Domain,
    Laned,
    Suspect,
    Troubled,
    Unsuccessful,
    Waiting,
    queue_table,
)
from commandbus.models import CommandStatus

FEW_PENDING = 5_000
"""Up to this many pending commands are listed from where they wait, whatever their age."""
QUEUE_HEAD = 20_000

Counts = Callable[[str | None], dict[CommandStatus, int]]
"""The counts by status of a domain; None: of all."""


@dataclass(frozen=True, slots=True)
class CommandFilters:
    """What the commands of a list have in common; None: anything."""

    status: CommandStatus | None = None
    domain: str | None = None
    command_type: str | None = None
    created_after: datetime | None = None
    """Inclusive."""
    created_before: datetime | None = None
    """Exclusive."""
    q: str | None = None
    """An id or its beginning, a correlation id, or an error code (see candidates)."""
    run_id: UUID | None = None
    """Of one load-test run."""
    lane: str | None = None
    """Of one lane."""


@dataclass(frozen=True, slots=True)
class CommandRow:
    """A command as lists show it."""

    command_id: UUID
    domain: str
    command_type: str
    status: CommandStatus
    attempts: int
    max_attempts: int | None
    budget: int | None
    """How many attempts it could have when it was last claimed; None: it never was."""
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    correlation_id: UUID | None
    batch_id: UUID | None
    lane: str | None
    last_error_type: str | None
    last_error_code: str | None
    last_error_message: str | None


_COLUMNS = tuple(getattr(Command, name) for name in CommandRow.__slots__)


def list_commands(filters: CommandFilters, window: Window) -> Listing[CommandRow]:
    """The commands that match every filter, newest first."""
    counts = cache(count_by_status)  # asked once, for the way to look and for the total
    source = _source(_while_generated(filters), counts)
    found = source.scan(window)
    # What a text can mean is cut at a limit, so the end of those is not the end of all.
    total = _counted(filters, counts) or (None if filters.q else found.total) or source.count()
    if source.is_cut:
        total = replace(total, is_exact=False)
    return found.listing(command_rows(found.keys), total)


def latest_commands(limit: int) -> list[CommandRow]:
    """The commands created last, newest first."""
    query = sa.select(*_COLUMNS).order_by(Command.created_at.desc(), Command.command_id.desc())
    return [CommandRow(*row) for row in db.session.execute(query.limit(limit))]


def command_rows(keys: Sequence[Key]) -> list[CommandRow]:
    """The commands with these keys, in this order; those that are gone are left out."""
    if not keys:
        return []
    wanted = [(key.command_id, key.domain) for key in keys]
    rows = db.session.execute(
        sa.select(*_COLUMNS).where(sa.tuple_(Command.command_id, Command.domain).in_(wanted))
    )
    by_id = {(row.command_id, row.domain): CommandRow(*row) for row in rows}
    return [by_id[key] for key in wanted if key in by_id]


def command_row(command_id: UUID, domain: str) -> CommandRow | None:
    """One command as lists show it, or None."""
    query = sa.select(*_COLUMNS).where(Command.command_id == command_id, Command.domain == domain)
    row = db.session.execute(query).one_or_none()
    return None if row is None else CommandRow(*row)


def domains_of(command_id: UUID) -> list[str]:
    """The domains in which a command has this id, sorted."""
    found = db.session.scalars(sa.select(Command.domain).where(Command.command_id == command_id))
    return sorted(found)


def domains_of_many(command_ids: Sequence[UUID]) -> dict[UUID, list[str]]:
    """The domains in which commands have these ids; unknown ids are left out."""
    query = sa.select(Command.command_id, Command.domain).where(Command.command_id.in_(command_ids))
    found: dict[UUID, list[str]] = {}
    for command_id, domain in db.session.execute(query):
        found.setdefault(command_id, []).append(domain)
    return found


def domains() -> list[str]:
    """The names of all domains, sorted."""
    return list(db.session.scalars(sa.select(Domain.domain).order_by(Domain.domain)))


def count_by_status(domain: str | None = None) -> dict[CommandStatus, int]:
    """How many commands are in each status: exact, at any number of commands."""
    row = db.session.execute(
        sa.text("select * from command_bus.count_by_status(:domain)"), {"domain": domain}
    ).one()
    return dict(zip(CommandStatus, row, strict=True))


def _while_generated(filters: CommandFilters) -> CommandFilters:
    """Commands of a run have no index of their own: they are among those sent while it was made."""
    run = None if filters.run_id is None else get_run(filters.run_id)
    if run is None:
        return filters
    # A run is recorded before its first command is sent, and its end after the last one; that of a
    # generation which died is only the last time it was heard of.
    end = run.generated_at
    if end is not None and run.state == RunState.FAILED:
        end += timedelta(seconds=SILENT_SECONDS)
    ends = [moment for moment in (filters.created_before, end) if moment is not None]
    return replace(
        filters,
        created_after=max(filters.created_after or run.created_at, run.created_at),
        created_before=min(ends, default=None),
    )


def _source(filters: CommandFilters, counts: Counts) -> Source:
    """Where the commands that match are found with the least looking."""
    if filters.q:
        meant = candidates(filters.q)
        found = _with_batch(meant.found.c, filters)
        rare = [*_created(found, filters), *_named(found, filters), sa.true()]
        if filters.status is not None:
            rare.append(found.status == filters.status)
        source = _scanned(found, (), rare, CANDIDATE_LIMIT)
        may_be_retried = filters.status in (None, CommandStatus.PENDING)
        is_cut = not meant.saw_all_ids or (may_be_retried and not sees_all_retries())
        return replace(source, is_cut=is_cut)
    match filters.status:
        case CommandStatus.IN_TSQ:
            troubled = _with_batch(Troubled, filters) if filters.lane else Troubled
            return _scanned(troubled, _created(troubled, filters), _named(troubled, filters))
        case CommandStatus.FAILED | CommandStatus.CANCELLED:
            listed = _with_batch(Unsuccessful, filters)
            ended = [listed.status == filters.status, *_created(listed, filters)]
            return _scanned(listed, ended, _named(listed, filters))
        case CommandStatus.IN_PROGRESS:
            return _among(_in_progress(filters.domain), filters)
        case CommandStatus.PENDING if counts(None)[CommandStatus.PENDING] <= FEW_PENDING:
            return _among(_pending(filters.domain), filters)
        case _:
            rare = _named(Command, filters)
            if filters.status is not None:
                rare.append(Command.status == filters.status)
            return _scanned(Command, _created(Command, filters), rare)


def _scanned(
    columns: Any, indexed: Sequence[Condition], rare: Sequence[Condition], limit: int = SCAN_LIMIT
) -> Source:
    """A scan of a table, or of the columns of a query."""
    return Source(columns.created_at, columns.command_id, columns.domain, indexed, rare, limit)


def _among(ids: sa.Subquery, filters: CommandFilters) -> Source:
    """The commands of a small set that have the wanted status."""
    alive = (
        sa.select(
            Command.created_at,
            Command.command_id,
            Command.domain,
            Command.command_type,
            Command.batch_id,
            Command.lane,
        )
        .join(ids, sa.and_(Command.command_id == ids.c.command_id, Command.domain == ids.c.domain))
        .where(Command.status == filters.status)
        .subquery()
    )
    return _scanned(alive.c, [*_created(alive.c, filters), *_named(alive.c, filters)], ())


def _created(columns: Any, filters: CommandFilters) -> list[Condition]:
    conditions: list[Condition] = []
    if filters.created_after is not None:
        conditions.append(columns.created_at >= filters.created_after)
    if filters.created_before is not None:
        conditions.append(columns.created_at < filters.created_before)
    return conditions


def _named(columns: Any, filters: CommandFilters) -> list[Condition]:
    conditions: list[Condition] = []
    if filters.domain is not None:
        conditions.append(columns.domain == filters.domain)
    if filters.command_type is not None:
        conditions.append(columns.command_type == filters.command_type)
    if filters.run_id is not None:
        conditions.append(columns.batch_id == filters.run_id)
    if filters.lane is not None:
        conditions.append(columns.lane == filters.lane)
    return conditions


def _with_batch(columns: Any, filters: CommandFilters) -> Any:
    """*columns*, and the batch where it is asked for, which only the command itself knows."""
    if filters.run_id is None and filters.lane is None:
        return columns
    same = sa.and_(Command.command_id == columns.command_id, Command.domain == columns.domain)
    return (
        sa.select(
            columns.created_at,
            columns.command_id,
            columns.domain,
            columns.command_type,
            columns.status,
            Command.batch_id,
            Command.lane,
        )
        .join(Command, same)
        .subquery()
        .c
    )


def command_queues(domain: str | None = None) -> list[tuple[str, sa.TableClause]]:
    """The domains (or the one) with the tables of their command queues; none that is missing."""
    table = sa.func.to_regclass("pgmq.q_" + Domain.command_queue)
    wanted = sa.select(Domain.domain, Domain.command_queue).where(table.is_not(None))
    if domain is not None:
        wanted = wanted.where(Domain.domain == domain)
    return [(name, queue_table(queue)) for name, queue in db.session.execute(wanted)]


def _nothing() -> sa.Select[*tuple[Any, ...]]:
    return sa.select(Command.command_id, Command.domain).where(sa.false())


def _messages(domain: str, queue: sa.TableClause, *, claimed: bool) -> sa.Select[*tuple[Any, ...]]:
    """The commands of a queue's oldest messages; *claimed*: of those that somebody has read."""
    head = sa.select(queue.c.message, queue.c.read_ct).order_by(queue.c.msg_id)
    inner = head.limit(QUEUE_HEAD).subquery()
    named = inner.c.message["command_id"].astext
    query = sa.select(
        sa.cast(named, sa.Uuid()).label("command_id"), sa.literal(domain).label("domain")
    ).where(named.regexp_match("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"))
    return query.where(inner.c.read_ct > 0) if claimed else query


def _in_progress(domain: str | None) -> sa.Subquery:
    """Who may be running: claims take the oldest messages, so these stand at the queue's head."""
    parts = [_messages(name, queue, claimed=True) for name, queue in command_queues(domain)]
    return sa.union(_nothing(), *parts).subquery()


def _pending(domain: str | None) -> sa.Subquery:
    """Waiting commands: in the queue, for their time, or to be run alone."""
    parts = [_messages(name, queue, claimed=False) for name, queue in command_queues(domain)]
    return sa.union(
        sa.select(Waiting.command_id, Waiting.domain),
        sa.select(Suspect.command_id, Suspect.domain),
        sa.select(Laned.command_id, Laned.domain),
        *parts,
    ).subquery()


def _counted(filters: CommandFilters, counts: Counts) -> Total | None:
    """The total where the counters know it: by status, by domain, or both."""
    if filters != CommandFilters(status=filters.status, domain=filters.domain):
        return None
    known = counts(filters.domain)
    if filters.status is not None:
        return Total(known[filters.status], is_exact=True)
    return Total(sum(known.values()), is_exact=True)
