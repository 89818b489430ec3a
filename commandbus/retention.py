"""Retention: finished commands are deleted when they are too old or too many.

What has not ended is never deleted; the database decides that (``command_bus.prune_commands``). A
command goes with its trail, and with it the memory of its id: the same id can be sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from commandbus import queries, retention_store, store
from commandbus.checks import (
    MAX_BIGINT,
    MAX_COUNT,
    MAX_SECONDS,
    check_number,
    check_positive,
    check_whole,
)
from commandbus.deadlines import answered_within
from commandbus.models import CommandStatus
from commandbus.names import check_domain, uuid_of
from commandbus.texts import shown

FINISHED = (CommandStatus.COMPLETED, CommandStatus.FAILED, CommandStatus.CANCELLED)
"""The final statuses, which are all that can be pruned."""

BATCH_SIZE = 500
PAUSE_RATIO = 1.0
"""After a batch pruning rests; this is the rest as a multiple of the batch's time."""
BATCH_SECONDS = 60.0
"""How long a batch may take."""
_FIRST_MOMENT = datetime(1, 1, 2, tzinfo=UTC)  # the first day is not within every zone

OnPruned = Callable[[AsyncConnection[Any], list[UUID]], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRule:
    """Which commands of one final status to delete.

    Each limit stands for itself: a command goes when it ended more than *older_than* ago, or when
    it is not among the *keep* that were created last. A limit of None does not count. Raises
    ValueError for a status that is not final, for a negative limit and for a rule without limits.
    """

    status: CommandStatus
    older_than: timedelta | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", CommandStatus(self.status))  # text is taken, too
        if self.status not in FINISHED:
            raise ValueError(f"commands that are {self.status} have not ended and are not pruned")
        if self.older_than is None and self.keep is None:
            raise ValueError("a rule needs an age or a number")
        if self.older_than is not None:
            _check_age("older_than", self.older_than)
        if self.keep is not None:
            check_whole("keep", self.keep, 0, MAX_BIGINT)


def _check_age(name: str, age: object) -> None:
    if not isinstance(age, timedelta) or age < timedelta(0):
        raise ValueError(f"{name} must be a timedelta that is not negative, not {shown(age)}")


def _before(now: datetime, age: timedelta) -> datetime:
    """The moment that long before *now*, or the earliest possible one."""
    return now - age if age < now - _FIRST_MOMENT else _FIRST_MOMENT


@dataclass(slots=True)
class Pruned:
    """What was deleted, or with a dry run what would be."""

    commands: Counter[CommandStatus] = field(default_factory=Counter)
    events: int = 0
    """Audit events deleted with the commands; a dry run does not count them."""
    batches: int = 0
    seconds: float = 0.0
    complete: bool = True
    """False: it was stopped, or its time was over, and more may be left."""


class Pruner:
    """Deletes finished commands in small transactions, resting between them.

    *conn* is in autocommit mode, belongs to the caller and is not used by others meanwhile; its
    role needs to execute ``command_bus.prune_commands`` and ``prune_history``. Each batch is one
    transaction of at most *batch_size* commands of *domain* (None: all); *on_pruned* is called
    inside it with the ids that were deleted, so that an application can delete its own rows with
    them. *on_batch* hears after each batch how far it is. Errors of the server pass as psycopg's;
    what was deleted before stays deleted. Raises NoAnswerError for a batch that the database has
    not answered within *answer_timeout* seconds, TransactionRolledBackError where *on_pruned* has
    swallowed the error of a statement, and ValueError for numbers below 1 and for a connection that
    is not in autocommit mode.
    """

    def __init__(
        self,
        conn: AsyncConnection[Any],
        *,
        domain: str | None = None,
        batch_size: int = BATCH_SIZE,
        on_pruned: OnPruned | None = None,
        on_batch: Callable[[Pruned], object] | None = None,
        answer_timeout: float = BATCH_SECONDS,
    ) -> None:
        check_whole("batch_size", batch_size, 1, MAX_COUNT)
        check_positive("answer_timeout", answer_timeout)
        if domain is not None:
            check_domain(domain)
        for name, function in (("on_pruned", on_pruned), ("on_batch", on_batch)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} is a function, not {shown(function)}")
        if not conn.autocommit:
            raise ValueError("conn must be in autocommit mode, or all batches are one transaction")
        self._conn = conn
        self._limit = answered_within(answer_timeout)
        self._domain = domain
        self._batch_size = batch_size
        self._on_pruned = on_pruned
        self._on_batch = on_batch
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let it end after the batch that is under way. Calling it twice is harmless."""
        self._stopping.set()

    async def prune(
        self,
        rules: Iterable[RetentionRule],
        *,
        max_seconds: float | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Delete what *rules* say, the oldest first, until nothing is left or time is over.

        Raises UnknownDomainError, and ValueError for a negative *max_seconds*.
        """
        if max_seconds is not None:
            check_number("max_seconds", max_seconds, 0, MAX_SECONDS)
        rules = list(rules)
        for rule in rules:
            if not isinstance(rule, RetentionRule):
                raise TypeError(f"rules are RetentionRules, not {shown(rule)}")
        started = time.monotonic()
        deadline = None if max_seconds is None else started + max_seconds
        done = Pruned()
        async with self._limit:
            await self._prune(done, rules, deadline, dry_run=dry_run)
        done.seconds = time.monotonic() - started
        return done

    async def _prune(
        self,
        done: Pruned,
        rules: Iterable[RetentionRule],
        deadline: float | None,
        *,
        dry_run: bool,
    ) -> None:
        if self._domain is not None:
            await queries.get_reply_queue(self._conn, self._domain)  # it exists
        for rule in rules:
            now = await store.server_time(self._conn)
            if rule.older_than is not None:
                before = _before(now, rule.older_than)
                await self._walk(done, rule.status, before, None, deadline, dry_run=dry_run)
            if rule.keep is not None:
                counts = await queries.count_by_status(self._conn, self._domain)
                surplus = counts[rule.status] - rule.keep
                if dry_run:  # what the age would have deleted is still counted
                    surplus -= done.commands[rule.status]
                await self._walk(done, rule.status, now, surplus, deadline, dry_run=dry_run)

    async def delete_batch(self, batch_id: UUID) -> int:
        """Delete up to *batch_size* ended commands of a batch in one transaction; returns how many.

        Call it until it returns 0: commands that have not ended stay. *domain* and *on_batch* do
        not count here. Raises psycopg's InsufficientPrivilege for a role that may not prune.
        """
        batch_id = uuid_of("batch_id", batch_id)
        async with self._limit, store.transaction(self._conn):
            deleted = await retention_store.delete_batch(self._conn, batch_id, self._batch_size)
            if deleted and self._on_pruned is not None:
                await self._on_pruned(self._conn, deleted)
        return len(deleted)

    async def is_permitted(self) -> bool:
        """Whether the connection's role may prune."""
        async with self._limit:
            return await retention_store.may_prune(self._conn)

    async def try_to_be_the_only_one(self) -> bool:
        """Whether no other session prunes on schedule; then this one does until it ends."""
        async with self._limit:
            return await retention_store.become_pruner(self._conn)

    async def prune_history(self, older_than: timedelta) -> Counter[str]:
        """Delete what the bus remembers besides commands for longer than *older_than*, by kind.

        Statistics by the second, workers that are gone, batches whose commands are all pruned,
        rejected messages with PGMQ's archive of them, and what failure groups were.
        """
        _check_age("older_than", older_than)
        total: Counter[str] = Counter()
        async with self._limit:
            before = _before(await store.server_time(self._conn), older_than)
            while not self._stopping.is_set():
                began = time.monotonic()
                deleted = await retention_store.prune_history(self._conn, before, self._batch_size)
                total.update(deleted)
                if max(deleted.values()) < self._batch_size:
                    break
                await self._rest(time.monotonic() - began)
        return +total

    async def _walk(
        self,
        done: Pruned,
        status: CommandStatus,
        before: datetime,
        most: int | None,
        deadline: float | None,
        *,
        dry_run: bool,
    ) -> None:
        """Delete commands of *status* that ended before *before*, at most *most*."""
        after: tuple[datetime | None, UUID | None] = (None, None)
        left = most
        while left is None or left > 0:
            if self._stopping.is_set() or (deadline is not None and time.monotonic() >= deadline):
                done.complete = False
                return
            began = time.monotonic()
            async with store.transaction(self._conn):
                batch = await retention_store.prune_commands(
                    self._conn,
                    status,
                    before,
                    self._batch_size if left is None else min(self._batch_size, left),
                    domain=self._domain,
                    after=after,
                    dry_run=dry_run,
                )
                if batch.command_ids and self._on_pruned is not None and not dry_run:
                    await self._on_pruned(self._conn, batch.command_ids)
            done.commands[status] += len(batch.command_ids)
            done.events += batch.events
            done.batches += 1
            self._limit.renew()
            if self._on_batch is not None:
                self._on_batch(done)
            if not batch.more:
                return
            after = batch.last
            left = None if left is None else left - len(batch.command_ids)
            if batch.command_ids and not dry_run:
                await self._rest(time.monotonic() - began)

    async def _rest(self, seconds: float) -> None:
        """Leave the server to others for a while, unless somebody wants this to stop."""
        self._limit.pause()
        try:
            async with asyncio.timeout(seconds * PAUSE_RATIO):
                await self._stopping.wait()
        except TimeoutError:
            pass
        self._limit.renew()
