"""Retention in the application: its settings, its own rows, and pruning on schedule."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from app.actions import job_store
from app.database.pools import network_options
from app.settings.options import choose, option, options_of
from app.testcommand import store
from commandbus import CommandBusError, CommandStatus
from commandbus.deadlines import answered_within
from commandbus.errors import one_line
from commandbus.pools import mind_pooler
from commandbus.retention import BATCH_SIZE, OnPruned, Pruned, Pruner, RetentionRule

logger = logging.getLogger(__name__)

APPLICATION_NAME = "commandbus retention"
OPERATOR_JOBS = "operator jobs"

_MOST_DAYS = 36_500
_MOST_COMMANDS = 1_000_000_000


@dataclass
class RetentionConfig:
    """What is pruned on schedule; 0 means no limit, so that nothing is pruned by default."""

    completed_days: float = option(
        0.0,
        "Completed, days",
        unit="days",
        low=0,
        high=_MOST_DAYS,
        variable="RETENTION_COMPLETED_DAYS",
        help="Delete completed commands this long after their end; 0 keeps them.",
    )
    failed_days: float = option(
        0.0,
        "Failed, days",
        unit="days",
        low=0,
        high=_MOST_DAYS,
        variable="RETENTION_FAILED_DAYS",
        help="Delete failed commands this long after their end; 0 keeps them.",
    )
    cancelled_days: float = option(
        0.0,
        "Cancelled, days",
        unit="days",
        low=0,
        high=_MOST_DAYS,
        variable="RETENTION_CANCELLED_DAYS",
        help="Delete cancelled commands this long after their end; 0 keeps them.",
    )
    completed_count: int = option(
        0,
        "Completed, number",
        unit="commands",
        low=0,
        high=_MOST_COMMANDS,
        variable="RETENTION_COMPLETED_COUNT",
        help="Keep at most this many completed commands, the newest; 0 keeps all.",
    )
    failed_count: int = option(
        0,
        "Failed, number",
        unit="commands",
        low=0,
        high=_MOST_COMMANDS,
        variable="RETENTION_FAILED_COUNT",
        help="Keep at most this many failed commands, the newest; 0 keeps all.",
    )
    cancelled_count: int = option(
        0,
        "Cancelled, number",
        unit="commands",
        low=0,
        high=_MOST_COMMANDS,
        variable="RETENTION_CANCELLED_COUNT",
        help="Keep at most this many cancelled commands, the newest; 0 keeps all.",
    )
    history_days: float = option(
        0.0,
        "History, days",
        unit="days",
        low=0,
        high=_MOST_DAYS,
        variable="RETENTION_HISTORY_DAYS",
        help="Delete statistics, workers that are gone, ended jobs of operators and rejected"
        " messages after this long; 0 keeps them.",
    )
    interval: float = option(
        60.0,
        "Interval",
        unit="seconds",
        low=0.1,
        high=86_400,
        variable="RETENTION_INTERVAL_SECONDS",
        help="How long to wait between two looks for something to prune.",
    )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> RetentionConfig:
        """What *environ* sets; raises InvalidOptionError for values that no option takes."""
        chosen = choose(RETENTION_OPTIONS, flags={}, environ=environ, stored={})
        return cls(**{name: item.value for name, item in chosen.items()})  # type: ignore[arg-type]

    def rules(self) -> list[RetentionRule]:
        """One rule for each status that has a limit."""
        limits = (
            (CommandStatus.COMPLETED, self.completed_days, self.completed_count),
            (CommandStatus.FAILED, self.failed_days, self.failed_count),
            (CommandStatus.CANCELLED, self.cancelled_days, self.cancelled_count),
        )
        return [
            RetentionRule(
                status=status,
                older_than=timedelta(days=days) if days else None,
                keep=count or None,
            )
            for status, days, count in limits
            if days or count
        ]

    @property
    def history(self) -> timedelta | None:
        """After which age history goes; None: never."""
        return timedelta(days=self.history_days) if self.history_days else None

    @property
    def is_on(self) -> bool:
        """Whether anything is to be pruned at all."""
        return bool(self.rules()) or self.history is not None


RETENTION_OPTIONS = options_of(RetentionConfig)

# A test command goes in the transaction that deletes its command.
with_test_commands: OnPruned = store.delete_orphaned_test_commands


async def connect(url: str, answer_timeout: int) -> AsyncConnection[TupleRow]:
    """A connection for a Pruner, whose statements may take longer; the caller closes it."""
    options = network_options(url, APPLICATION_NAME, answer_timeout)
    conn = await AsyncConnection.connect(url, autocommit=True, **options)
    # A day is 24 hours here, also where the database's zone has summer time.
    async with answered_within(answer_timeout):
        await mind_pooler(conn)
        await conn.execute("set timezone to 'UTC'")
    return conn


async def prune_history(
    pruner: Pruner, conn: AsyncConnection[TupleRow], older_than: timedelta
) -> Counter[str]:
    """Delete what bus and application remember besides commands, by kind."""
    deleted = await pruner.prune_history(older_than)
    while jobs := await job_store.delete_old_jobs(conn, older_than, BATCH_SIZE):
        deleted[OPERATOR_JOBS] += jobs
    return deleted


class RetentionSchedule:
    """Prunes again and again; of all processes that have one, one at a time does.

    The one that does holds an advisory lock on a connection of its own for as long as it lives; the
    others look now and then whether it still does.
    """

    def __init__(self, url: str, config: RetentionConfig, answer_timeout: int) -> None:
        self._url = url
        self._answer_timeout = answer_timeout
        self._config = config

    async def run(self) -> None:
        """Prune for ever; returns only where the role may not prune, or where nothing is set."""
        if not self._config.is_on:
            return
        while True:
            try:
                if not await self._run_once_chosen():
                    return
            except (psycopg.Error, CommandBusError) as exc:
                logger.error("retention_failed", extra={"error": one_line(exc)})
            await asyncio.sleep(self._config.interval)

    async def _run_once_chosen(self) -> bool:
        """Prune for as long as the connection lasts, if no other process does.

        False: this process need not try again.
        """
        async with await connect(self._url, self._answer_timeout) as conn:
            async with answered_within(self._answer_timeout):
                pruner = Pruner(conn, on_pruned=with_test_commands)
                permitted = await pruner.is_permitted()
                chosen = permitted and await pruner.try_to_be_the_only_one()
            if not permitted:
                logger.warning("retention_not_permitted", extra={"role": conn.info.user})
                return False
            if not chosen:
                return True
            logger.info("retention_started", extra=dataclasses.asdict(self._config))
            while True:
                await self._pass(pruner, conn)
                await asyncio.sleep(self._config.interval)

    async def _pass(self, pruner: Pruner, conn: AsyncConnection[TupleRow]) -> None:
        pruned = await pruner.prune(self._config.rules())
        history: Counter[str] = Counter()
        if self._config.history is not None:
            history = await prune_history(pruner, conn, self._config.history)
        if pruned.commands.total() or history:
            logger.info("retention_pruned", extra=log_fields(pruned, history))


def log_fields(pruned: Pruned, history: Mapping[str, int]) -> dict[str, object]:
    """What was pruned, as fields of a log line."""
    return {
        **{status.lower(): n for status, n in pruned.commands.items() if n},
        "events": pruned.events,
        "seconds": round(pruned.seconds, 3),
        **{kind.replace(" ", "_"): n for kind, n in history.items()},
    }


def rules_for(
    statuses: Sequence[CommandStatus], older_than: timedelta | None, keep: int | None
) -> list[RetentionRule]:
    """The same limits for each of *statuses*; no rules where there are no limits."""
    if older_than is None and keep is None:
        return []
    return [RetentionRule(status=each, older_than=older_than, keep=keep) for each in statuses]
