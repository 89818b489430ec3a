"""What a search text can mean, and the small sets of commands that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by

from app.models.base import db
from app.models.paging import Condition
from app.models.search_texts import IdText, id_text, trimmed
from app.models.tables import Command, Status, Troubled, Unsuccessful, Waiting
from commandbus.models import CommandStatus

CANDIDATE_LIMIT = 5_000
"""For each of its meanings, a search looks at this many of the newest commands."""
ID_SCAN_LIMIT = 2_000_000
"""For an id's end, so many of the ids with its beginning are looked at: ids begin with the time,
and the eight digits that lists show are those of a minute."""


LAST_PART = 12
"""The number of digits behind the last hyphen of an id."""


def is_id(column: Any, ids: IdText) -> sa.ColumnElement[bool]:
    """Whether *column* is one of the ids that were meant."""
    within: sa.ColumnElement[bool] = column.between(ids.first, ids.last)
    return sa.and_(within, ends_with(column, ids.tail)) if ids.tail else within


def ends_with(column: Any, tail: str) -> sa.ColumnElement[bool]:
    """Whether the id in *column* ends with these digits."""
    digits: Any = sa.cast(column, sa.Text)
    if len(tail) > LAST_PART:
        digits = sa.func.replace(digits, "-", "")
    return sa.func.right(digits, len(tail)) == tail


def contains(column: Any, text: str) -> sa.ColumnElement[bool]:
    """Whether *column* contains *text*, in any case; `%` and `_` stand for themselves."""
    matches: sa.ColumnElement[bool] = column.icontains(text, autoescape=True)
    return matches


@dataclass(frozen=True, slots=True)
class Candidates:
    """The commands that a text may mean."""

    found: sa.Subquery
    saw_all_ids: bool


def candidates(text: str) -> Candidates:
    """The commands that *text* may mean: an id or a part of it, a correlation id, an error code.

    An error code means those that ended with it, are in the troubleshooting queue or wait for a
    retry; of the last, CANDIDATE_LIMIT are looked at. No index knows the codes of any others.

    Columns: created_at, command_id, domain, command_type, status. Where a meaning has more than
    CANDIDATE_LIMIT commands, so has the answer: the newest of them.
    """
    ids, text = id_text(text), trimmed(text)
    retried = _retried_commands()
    meanings = [
        _commands(
            Troubled, sa.cast(CommandStatus.IN_TSQ, Status), Troubled.error_code == text
        ).order_by(Troubled.entered_at.desc()),
        _commands(Unsuccessful, Unsuccessful.status, Unsuccessful.error_code == text).order_by(
            Unsuccessful.created_at.desc()
        ),
        _commands(retried, retried.status, retried.last_error_code == text).order_by(
            retried.created_at.desc()
        ),
    ]
    saw_all = True
    if ids is not None and ids.tail:
        ends = with_ends(ids)
        saw_all = ends.saw_all
        ended = _looked_up(_table_of(ends.keys))
        meanings.append(_commands(ended, ended.status, sa.true()))
    elif ids is not None:
        meanings.append(
            _commands(Command, Command.status, is_id(Command.command_id, ids)).order_by(
                Command.command_id.desc()
            )
        )
    if ids is not None and ids.whole is not None:
        meanings.append(_commands(Command, Command.status, Command.correlation_id == ids.whole))
    limited = [sa.select(m.limit(CANDIDATE_LIMIT + 1).subquery()) for m in meanings]
    return Candidates(sa.union(*limited).subquery(), saw_all)


@dataclass(frozen=True, slots=True)
class Ends:
    """The commands whose ids have a certain beginning and end."""

    keys: list[tuple[UUID, str]]
    """Ids and domains, newest ids first; CANDIDATE_LIMIT + 1 at most."""
    saw_all: bool
    """False where more than ID_SCAN_LIMIT ids have the beginning; these are the newest."""


def with_ends(ids: IdText) -> Ends:
    """Look for an id's end among those with its beginning, in the index of the ids alone."""
    walked = (
        sa.select(Command.command_id, Command.domain)
        .where(Command.command_id.between(ids.first, ids.last))
        .order_by(Command.command_id.desc())
        .limit(ID_SCAN_LIMIT + 1)
        .subquery()
    )
    is_meant = ends_with(walked.c.command_id, ids.tail)
    newest = aggregate_order_by(walked.c.command_id, walked.c.command_id.desc(), walked.c.domain)
    domains = aggregate_order_by(walked.c.domain, walked.c.command_id.desc(), walked.c.domain)
    found, names, count = db.session.execute(
        sa.select(
            sa.func.array_agg(newest).filter(is_meant),
            sa.func.array_agg(domains).filter(is_meant),
            sa.func.count(),
        ).select_from(walked)
    ).one()
    keys = list(zip(found or (), names or (), strict=True))[: CANDIDATE_LIMIT + 1]
    return Ends(keys, count <= ID_SCAN_LIMIT)


def find_ids(ids: IdText, limit: int) -> sa.Select[*tuple[Any, ...]]:
    """The ids, domains and times of the commands that are meant, newest ids first."""
    meant = is_id(Command.command_id, ids)
    if ids.tail:
        meant = sa.tuple_(Command.command_id, Command.domain).in_(with_ends(ids).keys)
    query = sa.select(Command.command_id, Command.domain, Command.created_at).where(meant)
    return query.order_by(Command.command_id.desc()).limit(limit)


def sees_all_retries() -> bool:
    """Whether so few commands wait for a retry that a search looks at all of them."""
    some = _retries().limit(CANDIDATE_LIMIT + 1).subquery()
    return (db.session.scalar(sa.select(sa.func.count()).select_from(some)) or 0) <= CANDIDATE_LIMIT


def _retries() -> sa.Select[UUID, str]:
    return sa.select(Waiting.command_id, Waiting.domain).where(Waiting.kind != "SCHEDULED")


def _retried_commands() -> Any:
    """The columns of the commands that wait for a retry, of CANDIDATE_LIMIT at most."""
    return _looked_up(_retries().order_by(Waiting.due_at.desc()).limit(CANDIDATE_LIMIT).subquery())


def _table_of(keys: Sequence[tuple[UUID, str]]) -> sa.Subquery:
    ids = sa.literal([key[0] for key in keys], ARRAY(sa.Uuid()))
    domains = sa.literal([key[1] for key in keys], ARRAY(sa.Text()))
    rows = sa.func.unnest(ids, domains).table_valued(
        sa.column("command_id", sa.Uuid()), sa.column("domain", sa.Text())
    )
    rows = rows.render_derived()
    return sa.select(rows).subquery()


def _looked_up(keys: sa.Subquery) -> Any:
    """The columns of the commands with these ids and domains."""
    # The limit keeps the planner at looking up each one: a join may read all commands instead.
    command = (
        sa.select(Command)
        .where(Command.command_id == keys.c.command_id, Command.domain == keys.c.domain)
        .limit(1)
        .lateral()
    )
    return sa.select(command).select_from(keys.join(command, sa.true())).subquery().c


def _commands(table: Any, status: Any, meant: Condition) -> sa.Select[*tuple[Any, ...]]:
    return sa.select(
        table.created_at,
        table.command_id,
        table.domain,
        table.command_type,
        status.label("status"),
    ).where(meant)
