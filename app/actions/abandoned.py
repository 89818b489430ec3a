"""Work whose process has died or stands still, found and brought to its end by every other one."""

from __future__ import annotations

import asyncio
import logging

import psycopg
from psycopg_pool import PoolTimeout

from app.actions import job_store
from app.actions.jobs import LOOK_EVERY_SECONDS, JobRunner
from app.database.pools import Pool
from app.loadtest.runs import SILENT_SECONDS, settle_runs
from commandbus.errors import one_line
from commandbus.pools import autocommit

logger = logging.getLogger(__name__)


class AbandonedWork:
    """Looks for it every few seconds: one small query where there is none."""

    def __init__(self, pool: Pool, jobs: JobRunner) -> None:
        self._pool = pool
        self._jobs = jobs

    async def run(self, *, every: float = LOOK_EVERY_SECONDS) -> None:
        """Look *every* so many seconds, until cancelled; whatever goes wrong, look again."""
        is_away = False
        while True:
            await asyncio.sleep(every)
            try:
                await self.look()
                is_away = False
            except (psycopg.Error, PoolTimeout) as exc:
                if not is_away:
                    logger.info("abandoned_work_not_seen", extra={"error": one_line(exc)})
                is_away = True
            except Exception:
                logger.exception("abandoned_work_not_taken")

    async def look(self) -> None:
        """Take over the jobs that are abandoned now, and record the end of such generations."""
        async with autocommit(self._pool) as conn:
            jobs, runs = await job_store.has_abandoned_work(
                conn, lease_seconds=self._jobs.lease_seconds, run_seconds=SILENT_SECONDS
            )
        if jobs:
            await self._jobs.adopt_now(self._pool)
        if runs:
            await settle_runs(self._pool)
