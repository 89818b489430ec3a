"""Operators' actions on sets of troubled commands: at once, or as a job that goes on by itself.

Every action is recorded as a job. Up to AT_ONCE commands are dealt with in one transaction within
the request. More are dealt with in chunks by a thread of the process that was asked. A chunk is one
transaction, which does nothing unless the job still stands where it was read. So when that process
dies or freezes, any other takes the job over (`JobRunner.adopt`, app.abandoned), and one that comes
back finds that it has lost the job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import sqlalchemy.exc
from flask import Flask, current_app
from psycopg.types.json import Jsonb
from psycopg_pool import PoolTimeout

from app.actions import job_store
from app.database import DatabaseError
from app.database.pools import Pool
from app.models import TroubledFilters, count_troubled, queue_moment, troubled_keys
from app.models.operator_jobs import JobRow, get_job
from app.models.paging import Total
from app.server.portal import DatabaseSlowError, Portal, current_portal
from commandbus import store, uuid7
from commandbus.errors import one_line
from commandbus.models import OperatorResult, OperatorVerdict

logger = logging.getLogger(__name__)

AT_ONCE = 500
CHUNK = 500
SKIPPED_KEPT = 100
NOT_FOUND = "NOT_FOUND"
CHOOSE_SECONDS = 3.0
"""How long the commands of a filter are looked for before a job does it."""
UNDO_SECONDS = 10.0
"""For so long a retry from a page waits, and can be undone."""
LOOK_EVERY_SECONDS = 5.0
MOST_AT_ONCE = 4
"""So many jobs a process works on at once; each holds a connection, which pages need, too."""
_PAUSE_SECONDS = 1.0
_FAULTS = (
    psycopg.Error,
    sqlalchemy.exc.SQLAlchemyError,
    DatabaseError,
    DatabaseSlowError,
)

CommandKey = tuple[str, UUID]
"""Domain and id."""


class Action(StrEnum):
    """What an operator can do with commands in the troubleshooting queue."""

    RETRY = "retry"
    COMPLETE = "complete"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An action, by whom, and on which commands: the chosen ones, or all that match the filter."""

    action: Action
    operator: str
    chosen: Sequence[CommandKey] | None = None
    filters: TroubledFilters | None = None
    reason: str | None = None
    notes: str | None = None
    result: Any = None
    delay_seconds: float = 0.0
    """How long each retry waits before a worker may take it."""

    @property
    def wanted_filters(self) -> TroubledFilters:
        """The filters; ValueError for an order of chosen commands."""
        if self.filters is None:
            raise ValueError("the order names its commands")
        return self.filters

    @property
    def arguments(self) -> dict[str, Any]:
        """What the action needs besides, as it is stored."""
        match self.action:
            case Action.CANCEL:
                return {"reason": self.reason}
            case Action.COMPLETE:
                return {"result": self.result, "notes": self.notes}
            case Action.RETRY:
                return {}


@dataclass(slots=True)
class Outcome:
    """What became of a set of commands."""

    done: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def add(self, domain: str, results: Sequence[OperatorResult]) -> None:
        """Count the answers of a call for *domain*."""
        for result in results:
            if result.verdict is OperatorVerdict.DONE:
                self.done += 1
                continue
            status = NOT_FOUND if result.status is None else result.status.value
            self.changed[status] += 1
            if len(self.skipped) < SKIPPED_KEPT:
                self.skipped.append(
                    {"domain": domain, "command_id": str(result.command_id), "status": status}
                )


@dataclass(frozen=True, slots=True)
class Choice:
    """The commands that match filters at one moment."""

    keys: list[CommandKey] | None
    """None where they are too many to be dealt with at once."""
    total: Total
    filters: TroubledFilters
    """Those that were given, with the moment: what comes into the queue later is not chosen."""


def choose(filters: TroubledFilters) -> Choice:
    """The commands that match *filters*, and how many they are, as far as CHOOSE_SECONDS go."""
    deadline = time.monotonic() + CHOOSE_SECONDS
    if filters.entered_until is None:
        filters = replace(filters, entered_until=queue_moment())
    chosen: list[CommandKey] = []
    cursor: str | None = None
    while len(chosen) <= AT_ONCE:
        keys, cursor = troubled_keys(filters, AT_ONCE + 1, cursor)
        chosen += [(key.domain, key.command_id) for key in keys]
        if cursor is None and len(chosen) <= AT_ONCE:
            return Choice(chosen, Total(len(chosen), is_exact=True), filters)
        if time.monotonic() > deadline:
            return Choice(None, Total(len(chosen), is_exact=False), filters)
    return Choice(None, count_troubled(filters), filters)


def start(order: Order) -> UUID:
    """Carry out *order* of a page, and record it as a job; returns the job's id.

    A set of at most AT_ONCE commands is done when this returns, and a retry of it waits
    UNDO_SECONDS. A larger one is retried at once, and goes on after this returns.
    """
    chosen = order.chosen
    if chosen is None:
        found = choose(order.wanted_filters)
        if found.keys is None:
            return start_job(order, found)
        chosen = found.keys
    if order.action is Action.RETRY:
        order = replace(order, delay_seconds=UNDO_SECONDS)
    return _record_order(order, chosen, Total(len(chosen), is_exact=True))


def start_job(order: Order, choice: Choice) -> UUID:
    """Begin to carry out *order* on everything that was chosen; returns the job's id."""
    job_id = _record_order(replace(order, filters=choice.filters), None, choice.total)
    current_runner().start(job_id)
    return job_id


def _record_order(order: Order, chosen: Sequence[CommandKey] | None, expected: Total) -> UUID:
    job_id = uuid7()
    portal = current_portal()
    portal.call(_begin, portal.pool, order, job_id, current_runner().id, chosen, expected)
    return job_id


def stop(job_id: UUID) -> bool:
    """Let a running job end after the chunk under way; whether it was running."""
    portal = current_portal()

    async def stop_job() -> bool:
        async with store.autocommit(portal.pool) as conn:
            return await job_store.stop_job(conn, job_id)

    return portal.call(stop_job)


def undo(job: JobRow, operator: str) -> Outcome:
    """Take back what the job's retries have not begun yet."""
    portal = current_portal()
    outcome = Outcome()

    async def undo_job() -> None:
        async with portal.pool.connection() as conn, conn.transaction():
            for domain, ids in _by_domain(job.chosen or ()).items():
                outcome.add(
                    domain, await store.operate(conn, "undo_operator_retry", domain, ids, operator)
                )
            if outcome.done:
                await job_store.mark_undone(conn, job.summary.job_id, operator)

    portal.call(undo_job)
    return outcome


class JobRunner:
    """The jobs that this process works on, each in a thread of its own; MOST_AT_ONCE at a time."""

    def __init__(self, app: Flask) -> None:
        self.id = uuid4()
        self.lease_seconds: float = app.config.get("JOB_LEASE_SECONDS", job_store.LEASE_SECONDS)
        self._app = app
        self._lock = threading.Lock()
        self._running: set[UUID] = set()
        self._waiting: deque[UUID] = deque()
        self._looked_at = -LOOK_EVERY_SECONDS

    def start(self, job_id: UUID) -> None:
        """Work on a job that belongs to this runner, until it ends or is somebody else's."""
        with self._lock:
            if job_id in self._running or job_id in self._waiting:
                return
            if len(self._running) >= MOST_AT_ONCE:
                self._waiting.append(job_id)
                return
            self._running.add(job_id)
        self._start_thread(job_id)

    def adopt(self) -> None:
        """Begin to take over the jobs whose process has died; looks for them every few seconds.

        For pages of an application that no watch of app.abandoned runs beside. They wait for
        nothing, and what goes wrong here is no matter of theirs.
        """
        now = time.monotonic()
        with self._lock:
            if now - self._looked_at < LOOK_EVERY_SECONDS:
                return
            self._looked_at = now
        portal = self._portal
        pool = portal.pool

        async def adopt_soon() -> None:
            try:
                await self.adopt_now(pool)
            except (psycopg.Error, PoolTimeout) as exc:
                logger.info("abandoned_jobs_not_seen", extra={"error": one_line(exc)})

        portal.start("operator-jobs", adopt_soon)

    async def adopt_now(self, pool: Pool) -> None:
        """Take over some of the jobs whose process has died, as many as there is room for."""
        with self._lock:
            own = [*self._running, *self._waiting]
        room = MOST_AT_ONCE - len(own)
        if room <= 0:
            return
        async with store.autocommit(pool) as conn:
            adopted = await job_store.adopt_jobs(
                conn, self.id, lease_seconds=self.lease_seconds, but=own, limit=room
            )
        for job_id in adopted:
            logger.warning("operator_job_adopted", extra={"job_id": str(job_id)})
            self.start(job_id)

    @property
    def _portal(self) -> Portal:
        return cast(Portal, self._app.extensions["portal"])

    def _start_thread(self, job_id: UUID) -> None:
        name = f"operator-job-{job_id}"
        threading.Thread(target=self._work, args=(job_id,), name=name, daemon=True).start()

    def _work(self, job_id: UUID) -> None:
        portal = self._portal
        closing = portal.closing
        is_faulty = False
        try:
            while not closing.is_set():
                try:
                    if not self._step(portal, job_id):
                        return
                    is_faulty = False
                except _FAULTS as exc:
                    # It goes on when the database is back, unless another process was faster.
                    if not is_faulty and not closing.is_set():
                        extra = {"job_id": str(job_id), "error": one_line(exc)}
                        logger.warning("operator_job_waits", extra=extra)
                    is_faulty = True
                    closing.wait(_PAUSE_SECONDS)
        except Exception:
            logger.exception("operator_job_left", extra={"job_id": str(job_id)})
        finally:
            self._ended(job_id)

    def _ended(self, job_id: UUID) -> None:
        with self._lock:
            self._running.discard(job_id)
            following = self._waiting.popleft() if self._waiting else None
            if following is not None:
                self._running.add(following)
        if following is not None:
            self._start_thread(following)

    def _step(self, portal: Portal, job_id: UUID) -> bool:
        """Deal with one chunk; whether there may be another for this process."""
        with self._app.app_context():
            job = get_job(job_id)
            if (
                job is None
                or job.runner != self.id
                or job.summary.state != "running"
                or job.summary.filter is None
            ):
                return False
            filters = _filters(job.summary.filter, job.entered_until)
            keys, cursor = troubled_keys(filters, CHUNK, job.cursor)
        chosen = [(key.domain, key.command_id) for key in keys]
        going_on: bool = portal.call(
            _continue, portal.pool, job, self.id, chosen, cursor, self.lease_seconds
        )
        return going_on


def current_runner() -> JobRunner:
    """The runner of the current application."""
    app = cast(Any, current_app)._get_current_object()
    runner = app.extensions.get("operator_jobs")
    if runner is None:
        runner = app.extensions.setdefault("operator_jobs", JobRunner(app))
    return cast(JobRunner, runner)


def stored_filters(filters: TroubledFilters) -> dict[str, str]:
    """The filters that are set, as they are stored with a job, beside their moment."""
    names = [name for name in TroubledFilters.__slots__ if name != "entered_until"]
    return {name: str(value) for name in names if (value := getattr(filters, name)) is not None}


def _filters(stored: Mapping[str, str], entered_until: datetime | None) -> TroubledFilters:
    group_id = None if "group_id" not in stored else UUID(stored["group_id"])
    rest = {name: value for name, value in stored.items() if name != "group_id"}
    return TroubledFilters(**rest, group_id=group_id, entered_until=entered_until)


async def _begin(
    pool: Pool,
    order: Order,
    job_id: UUID,
    runner: UUID,
    chosen: Sequence[CommandKey] | None,
    expected: Total,
) -> None:
    filters = order.filters if chosen is None else None
    async with pool.connection() as conn, conn.transaction():
        await job_store.create_job(
            conn,
            job_id=job_id,
            action=order.action.value,
            operator=order.operator,
            arguments=order.arguments,
            chosen=chosen,
            filters=None if filters is None else stored_filters(filters),
            delay_seconds=order.delay_seconds,
            expected=expected.count,
            expected_is_exact=expected.is_exact,
            entered_until=None if filters is None else filters.entered_until,
            runner=runner,
        )
        if chosen is not None:
            outcome = Outcome()
            await _act(conn, order, chosen, outcome)
            await _record(conn, job_id, outcome, outcome.done, None)


async def _continue(
    pool: Pool,
    job: JobRow,
    runner: UUID,
    chosen: Sequence[CommandKey],
    cursor: str | None,
    lease_seconds: float,
) -> bool:
    """Deal with a chunk, unless the job has moved since *job* was read; False when it is over.

    Where it has moved nothing is done, and reading it anew tells whose it is.
    """
    summary = job.summary
    order = Order(
        action=Action(summary.action),
        operator=summary.operator,
        delay_seconds=summary.delay_seconds,
        **summary.arguments,
    )
    outcome = Outcome(changed=Counter(summary.changed), skipped=list(job.skipped))
    async with pool.connection() as conn, conn.transaction():
        if not await job_store.lock_job(
            conn, summary.job_id, runner, job.cursor, lease_seconds=lease_seconds
        ):
            return True
        await _act(conn, order, chosen, outcome)
        await _record(conn, summary.job_id, outcome, outcome.done, cursor)
    return cursor is not None


async def _record(
    conn: store.Connection, job_id: UUID, outcome: Outcome, done: int, cursor: str | None
) -> None:
    await job_store.record_chunk(
        conn, job_id, done=done, changed=outcome.changed, skipped=outcome.skipped, cursor=cursor
    )


async def _act(
    conn: store.Connection, order: Order, chosen: Sequence[CommandKey], outcome: Outcome
) -> None:
    for domain, ids in _by_domain(chosen).items():
        match order.action:
            case Action.RETRY:
                extra: tuple[Any, ...] = (order.delay_seconds,)
            case Action.CANCEL:
                extra = (order.reason,)
            case Action.COMPLETE:
                extra = (Jsonb(order.result), order.notes)
        function = f"operator_{order.action.value}"
        outcome.add(
            domain, await store.operate(conn, function, domain, ids, order.operator, *extra)
        )


def _by_domain(chosen: Sequence[CommandKey]) -> dict[str, list[UUID]]:
    domains: dict[str, list[UUID]] = {}
    for domain, command_id in sorted(set(chosen)):
        domains.setdefault(domain, []).append(command_id)
    return domains
