"""What a search text can mean, and the small sets of commands that it names."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from app.models.base import db
from app.models.paging import Condition
from app.models.tables import Command, Status, Troubled, Unsuccessful, Waiting
from commandbus.models import CommandStatus

CANDIDATE_LIMIT = 5_000
"""A search looks at the newest so many commands for each of its meanings."""

_SHAPE = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
_HEX = re.compile(r"[0-9a-f]{1,32}", re.ASCII)


def id_range(text: str) -> tuple[UUID, UUID] | None:
    """The first and the last id that begin with *text*, or None where no id can.

    Upper case is accepted, hyphens may be left out.
    """
    text = text.strip().lower()
    if "-" in text:
        if len(text) > len(_SHAPE):
            return None
        if any((char == "-") != (place == "-") for char, place in zip(text, _SHAPE, strict=False)):
            return None
    digits = text.replace("-", "")
    if _HEX.fullmatch(digits) is None:
        return None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def contains(column: Any, text: str) -> sa.ColumnElement[bool]:
    """Whether *column* contains *text*, in any case; `%` and `_` stand for themselves."""
    matches: sa.ColumnElement[bool] = column.icontains(text, autoescape=True)
    return matches


def candidates(text: str) -> sa.Subquery:
    """The commands that *text* may mean: an id or its beginning, a correlation id, an error code.

    An error code means those that ended with it, are in the troubleshooting queue or wait for a
    retry; of the last, CANDIDATE_LIMIT are looked at. No index knows the codes of any others.

    Columns: created_at, command_id, domain, command_type, status. Where a meaning has more than
    CANDIDATE_LIMIT commands, so has the answer: the newest of them.
    """
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
    ids = id_range(text)
    if ids is not None:
        first, last = ids
        meanings.append(
            _commands(Command, Command.status, Command.command_id.between(first, last)).order_by(
                Command.command_id.desc()
            )
        )
        if first == last:
            meanings.append(_commands(Command, Command.status, Command.correlation_id == first))
    limited = [sa.select(m.limit(CANDIDATE_LIMIT + 1).subquery()) for m in meanings]
    return sa.union(*limited).subquery()


def sees_all_retries() -> bool:
    """Whether so few commands wait for a retry that a search looks at all of them."""
    some = _retries().limit(CANDIDATE_LIMIT + 1).subquery()
    return (db.session.scalar(sa.select(sa.func.count()).select_from(some)) or 0) <= CANDIDATE_LIMIT


def _retries() -> sa.Select[UUID, str]:
    return sa.select(Waiting.command_id, Waiting.domain).where(Waiting.kind != "SCHEDULED")


def _retried_commands() -> Any:
    """The columns of the commands that wait for a retry, of CANDIDATE_LIMIT at most."""
    retries = _retries().order_by(Waiting.due_at.desc()).limit(CANDIDATE_LIMIT).subquery()
    # The limit keeps the planner at looking up each one: a join may read all commands instead.
    command = (
        sa.select(Command)
        .where(Command.command_id == retries.c.command_id, Command.domain == retries.c.domain)
        .limit(1)
        .lateral()
    )
    return sa.select(command).select_from(retries.join(command, sa.true())).subquery().c


def _commands(table: Any, status: Any, meant: Condition) -> sa.Select[*tuple[Any, ...]]:
    return sa.select(
        table.created_at,
        table.command_id,
        table.domain,
        table.command_type,
        status.label("status"),
    ).where(meant)
