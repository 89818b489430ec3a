"""What a search text can mean, and the small sets of commands that it names."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.models.base import db
from app.models.paging import Condition
from app.models.tables import Command, Status, Troubled, Unsuccessful, Waiting
from app.search_texts import IdText, id_text, trimmed
from commandbus.models import CommandStatus

CANDIDATE_LIMIT = 5_000
"""A search looks at the newest so many commands for each of its meanings."""
ID_SCAN_LIMIT = 2_000_000
"""For an id's end, so many of the ids with its beginning are looked at: ids begin with the time,
and the eight digits that lists show are those of a minute."""


def is_id(column: Any, ids: IdText) -> sa.ColumnElement[bool]:
    """Whether *column* is one of the ids that were meant."""
    within: sa.ColumnElement[bool] = column.between(ids.first, ids.last)
    return sa.and_(within, ends_with(column, ids.tail)) if ids.tail else within


def ends_with(column: Any, tail: str) -> sa.ColumnElement[bool]:
    """Whether the id in *column* ends with these digits."""
    digits = sa.func.replace(sa.cast(column, sa.Text), "-", "")
    return sa.func.right(digits, len(tail)) == tail


def contains(column: Any, text: str) -> sa.ColumnElement[bool]:
    """Whether *column* contains *text*, in any case; `%` and `_` stand for themselves."""
    matches: sa.ColumnElement[bool] = column.icontains(text, autoescape=True)
    return matches


def candidates(text: str) -> sa.Subquery:
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
    if ids is not None and ids.tail:
        ended = _looked_up(_ids_with_end(ids).limit(CANDIDATE_LIMIT + 1).subquery())
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
    return sa.union(*limited).subquery()


def sees_all_ids(text: str) -> bool:
    """Whether so few commands have ids with the beginning of *text* that all are looked at."""
    ids = id_text(text)
    if ids is None or not ids.tail:
        return True
    beyond = _ids_between(ids).offset(ID_SCAN_LIMIT).limit(1)
    return db.session.execute(beyond).first() is None


def find_ids(ids: IdText, limit: int) -> sa.Select[*tuple[Any, ...]]:
    """The ids, domains and times of the commands that are meant, newest ids first."""
    meant = is_id(Command.command_id, ids)
    columns: Any = Command
    if ids.tail:
        columns, meant = _looked_up(_ids_with_end(ids).limit(limit).subquery()), sa.true()
    query = sa.select(columns.command_id, columns.domain, columns.created_at).where(meant)
    return query.order_by(columns.command_id.desc()).limit(limit)


def _ids_between(ids: IdText) -> sa.Select[*tuple[Any, ...]]:
    return (
        sa.select(Command.command_id, Command.domain)
        .where(Command.command_id.between(ids.first, ids.last))
        .order_by(Command.command_id.desc())
    )


def _ids_with_end(ids: IdText) -> sa.Select[*tuple[Any, ...]]:
    """Walks the index of the ids alone, and no further than ID_SCAN_LIMIT."""
    walked = _ids_between(ids).limit(ID_SCAN_LIMIT).subquery()
    return sa.select(walked).where(ends_with(walked.c.command_id, ids.tail))


def sees_all_retries() -> bool:
    """Whether so few commands wait for a retry that a search looks at all of them."""
    some = _retries().limit(CANDIDATE_LIMIT + 1).subquery()
    return (db.session.scalar(sa.select(sa.func.count()).select_from(some)) or 0) <= CANDIDATE_LIMIT


def _retries() -> sa.Select[UUID, str]:
    return sa.select(Waiting.command_id, Waiting.domain).where(Waiting.kind != "SCHEDULED")


def _retried_commands() -> Any:
    """The columns of the commands that wait for a retry, of CANDIDATE_LIMIT at most."""
    return _looked_up(_retries().order_by(Waiting.due_at.desc()).limit(CANDIDATE_LIMIT).subquery())


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
