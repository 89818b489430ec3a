"""Jobs: operators' actions on more commands than one request deals with.

A thread of the process that was asked deals with the commands in chunks. A chunk is one
transaction, which does nothing unless the job still stands where the thread read it. So when that
process dies or freezes, any other takes the job over (`JobRunner.adopt`, app.actions.abandoned),
and one that comes back finds that it has lost the job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import sqlalchemy.exc
from flask import Flask, current_app
from psycopg_pool import PoolTimeout

from app.actions import job_store
from app.actions.orders import Action, CommandKey, Connection, Order, Outcome, act
from app.database import DatabaseError
from app.database.pools import Pool
from app.models import TroubledFilters, troubled_keys
from app.models.operator_jobs import JobRow, get_job
from app.models.paging import Total
from app.server.portal import DatabaseSlowError, Portal, current_portal
from commandbus import CommandBus, TroubleshootingQueue
from commandbus.errors import one_line
from commandbus.pools import autocommit

logger = logging.getLogger(__name__)

CHUNK = 500
LOOK_EVERY_SECONDS = 5.0
MOST_AT_ONCE = 4
"""How many jobs a process works on at once; each holds a connection, and pages need some too."""
_PAUSE_SECONDS = 1.0
_FAULTS = (
    psycopg.Error,
    sqlalchemy.exc.SQLAlchemyError,
    DatabaseError,
    DatabaseSlowError,
)


def stop(job_id: UUID) -> bool:
    """Let a running job end after the chunk under way; whether it was running."""
    portal = current_portal()

    async def stop_job() -> bool:
        async with autocommit(portal.pool) as conn:
            return await job_store.stop_job(conn, job_id)

    return portal.call(stop_job)


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

        For pages of an application without app.actions.abandoned. They do not wait for it, and its
        errors do not reach them.
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
        async with autocommit(pool) as conn:
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
            filters = TroubledFilters.from_texts(job.summary.filter, job.entered_until)
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


async def create_job(
    conn: Connection,
    job_id: UUID,
    order: Order,
    chosen: Sequence[CommandKey] | None,
    expected: Total,
    runner: UUID,
) -> None:
    """Record that *runner* carries out *order*, on *chosen* or on what matches its filters."""
    filters = order.filters if chosen is None else None
    await job_store.create_job(
        conn,
        job_id=job_id,
        action=order.action.value,
        operator=order.operator,
        arguments=order.arguments,
        chosen=chosen,
        filters=None if filters is None else filters.texts(),
        delay_seconds=order.delay_seconds,
        expected=expected.count,
        expected_is_exact=expected.is_exact,
        entered_until=None if filters is None else filters.entered_until,
        runner=runner,
    )


async def record(conn: Connection, job_id: UUID, outcome: Outcome, cursor: str | None) -> None:
    """Add *outcome* to the job; without a *cursor* for the next chunk the job is finished."""
    await job_store.record_chunk(
        conn,
        job_id,
        done=outcome.done,
        changed=outcome.changed,
        skipped=outcome.skipped,
        cursor=cursor,
    )


async def _continue(
    pool: Pool,
    job: JobRow,
    runner: UUID,
    chosen: Sequence[CommandKey],
    cursor: str | None,
    lease_seconds: float,
) -> bool:
    """Deal with a chunk, unless the job has moved since *job* was read; False when it is over.

    Does nothing where the job has moved; whoever reads it again learns whose it is.
    """
    summary = job.summary
    order = Order(
        action=Action(summary.action),
        operator=summary.operator,
        delay_seconds=summary.delay_seconds,
        **summary.arguments,
    )
    outcome = Outcome(changed=Counter(summary.changed), skipped=list(job.skipped))
    async with CommandBus(pool).transaction() as conn:
        if not await job_store.lock_job(
            conn, summary.job_id, runner, job.cursor, lease_seconds=lease_seconds
        ):
            return True
        await act(TroubleshootingQueue(pool), conn, order, chosen, outcome)
        await record(conn, summary.job_id, outcome, cursor)
    return cursor is not None
