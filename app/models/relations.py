"""What caused a command, what it has caused, and the commands of a correlation id as a tree."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from app.models.base import db
from app.models.tables import Command
from commandbus.models import CommandStatus

SHOWN_EFFECTS = 100
SHOWN_OF_CONVERSATION = 1_000


@dataclass(frozen=True, slots=True)
class Related:
    """A command as those that have to do with it show it."""

    command_id: UUID
    domain: str
    command_type: str
    status: CommandStatus
    created_at: datetime
    causation_id: UUID | None


@dataclass(frozen=True, slots=True)
class Effects:
    """The commands that one command's handler sent, oldest first."""

    rows: list[Related]
    is_complete: bool
    """Whether these are all; else there are more."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A command in a conversation, below the one that caused it."""

    depth: int
    row: Related


@dataclass(frozen=True, slots=True)
class Conversation:
    """The commands of one correlation id, each below the one whose handler sent it."""

    correlation_id: UUID
    branches: list[Branch]
    is_complete: bool
    """Whether these are all; else the oldest are shown."""


_COLUMNS = tuple(getattr(Command, name) for name in Related.__slots__)
_OLDEST_FIRST = (Command.created_at, Command.command_id)


def causes_of(causation_id: UUID) -> list[Related]:
    """The commands with this id, of which one is the cause: mostly one; none once it is pruned."""
    query = sa.select(*_COLUMNS).where(Command.command_id == causation_id)
    return [Related(*row) for row in db.session.execute(query.order_by(Command.domain))]


def effects_of(command_id: UUID, limit: int = SHOWN_EFFECTS) -> Effects:
    """What the handler of the command with this id sent with its success, as far as it is there."""
    query = sa.select(*_COLUMNS).where(Command.causation_id == command_id)
    found = db.session.execute(query.order_by(*_OLDEST_FIRST).limit(limit + 1)).all()
    return Effects([Related(*row) for row in found[:limit]], is_complete=len(found) <= limit)


def conversation(correlation_id: UUID, limit: int = SHOWN_OF_CONVERSATION) -> Conversation:
    """The commands of a correlation id as a tree: roots and siblings by age."""
    query = sa.select(*_COLUMNS).where(Command.correlation_id == correlation_id)
    found = db.session.execute(query.order_by(*_OLDEST_FIRST).limit(limit + 1)).all()
    rows = [Related(*row) for row in found[:limit]]
    known = {row.command_id for row in rows}
    below: defaultdict[UUID | None, list[Related]] = defaultdict(list)
    for row in rows:
        is_root = row.causation_id not in known or row.causation_id == row.command_id
        below[None if is_root else row.causation_id].append(row)
    branches: list[Branch] = []
    placed: set[tuple[UUID, str]] = set()
    left = [Branch(0, row) for row in reversed(below[None])]
    while left:
        branch = left.pop()
        key = (branch.row.command_id, branch.row.domain)
        if key in placed:
            continue
        placed.add(key)
        branches.append(branch)
        children = below.get(branch.row.command_id, [])
        left += [Branch(branch.depth + 1, row) for row in reversed(children)]
    # Two that name each other have no root; nothing but a hand in the tables makes such.
    branches += [Branch(0, row) for row in rows if (row.command_id, row.domain) not in placed]
    return Conversation(correlation_id, branches, is_complete=len(found) <= limit)
