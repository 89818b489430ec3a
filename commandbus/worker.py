"""Worker: claim, run, settle, continuously.

    claim loop ──> slots (ready, running) ──> settler ──> database
        ▲  woken by a notification, a free slot, the next due time, poll_interval
    side tasks: listener, heartbeat, lease renewal; when one of them dies, the worker stops

The claim loop (claiming.py) is the only place that takes work or gives it back. All parts share one
WorkerState (worker_state.py); none of them knows the worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus.alarm import Alarm
from commandbus.app_version import MAX_VERSION
from commandbus.app_version import app_version as own_version
from commandbus.checks import (
    MAX_COUNT,
    MAX_LEASE_SECONDS,
    MAX_SECONDS,
    check_number,
    check_positive,
    check_whole,
)
from commandbus.claiming import ClaimLoop
from commandbus.deadlines import ANSWER_SECONDS, end_tasks
from commandbus.handlers import HandlerRegistry, default_registry
from commandbus.heartbeat import Heartbeat
from commandbus.known_types import KnownTypes
from commandbus.leases import Leases
from commandbus.listener import listen_for_commands
from commandbus.loop_watch import LoopWatch
from commandbus.models import Outcome, first_ids
from commandbus.names import check_domain, check_text
from commandbus.payload import MAX_RESULT_BYTES, json_text
from commandbus.retry import RetryPolicy
from commandbus.settler import Settler
from commandbus.slots import Slots
from commandbus.texts import shown
from commandbus.transactions import HandlerTransactions
from commandbus.worker_connections import WorkerConnections
from commandbus.worker_state import STOP_SECONDS, WorkerState

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Worker:
    """Runs the handlers of one domain, at most *concurrency* at once.

    * *handler_registry*: the handlers; without it those that ``@handler`` registered.
    * *visibility_timeout* (whole seconds, at least 1): how long a claim holds a command. A handler
      that runs longer without renewal is cancelled, and its command is claimed again.
    * *handler_timeout* (seconds; 0: no limit): how long a handler may run, renewed or not, unless
      it was registered with a limit of its own. It is cancelled then, and the attempt fails with
      the code HANDLER_TIMEOUT, as a transient error.
    * *batch_size*: how many commands one claim takes at most, and how many wait here for a slot.
    * *poll_interval* (seconds): the longest pause between two looks at an empty queue; a
      notification wakes the worker earlier.
    * *no_handler_after* (seconds): how long commands of a type that no running worker has a handler
      for wait for one, before they go to the troubleshooting queue with the code NO_HANDLER.
    * *retry_policy*: backoff, and the budget of commands that have none of their own.
    * *drain_timeout* (seconds): how long handlers may go on after ``stop()``.
    * *cancel_grace* (seconds): how long a handler may go on after an operator asked to cancel its
      command (``context.cancel_requested``), before its task is cancelled.
    * *answer_timeout* (seconds): how long a call of the database may take before its connection is
      given up and the call is tried again on another one; less where a lease is shorter.
    * *app_version*: the version of the application, shown on pages; without it APP_VERSION in the
      environment, or the git revision of the program.
    * *settings*: shown beside the worker on pages, used for nothing else.

    The pool belongs to the caller; each call takes a connection for as long as it lasts, and none
    is held while a handler runs. One more connection listens for notifications. Where handlers hold
    all of the pool, renewals, heartbeats and outcomes get connections of their own, four at most.

    Raises ValueError for numbers that make no sense (durations are at most ten years, a lease a
    year, counts 1,000,000), InvalidDomainError, InvalidCommandError for settings that JSON cannot
    hold, and TypeError for what is no registry or policy; ``run()`` raises UnknownDomainError.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
        *,
        domain: str,
        handler_registry: HandlerRegistry | None = None,
        concurrency: int = 4,
        visibility_timeout: int = 30,
        batch_size: int = 10,
        poll_interval: float = 1.0,
        handler_timeout: float = 0.0,
        no_handler_after: float = 3600.0,
        retry_policy: RetryPolicy | None = None,
        drain_timeout: float = 30.0,
        cancel_grace: float = 5.0,
        answer_timeout: float = ANSWER_SECONDS,
        settings: dict[str, Any] | None = None,
        app_version: str | None = None,
    ) -> None:
        check_domain(domain)
        registry = default_registry if handler_registry is None else handler_registry
        if not isinstance(registry, HandlerRegistry):
            raise TypeError(f"handler_registry is a HandlerRegistry, not {shown(registry)}")
        if not isinstance(settings, dict | None):
            raise TypeError(f"settings are a dict, not {shown(settings)}")
        json_text("settings", settings, MAX_RESULT_BYTES)
        if app_version is not None:
            check_text("app_version", app_version, 1, MAX_VERSION)
        check_positive("answer_timeout", answer_timeout)
        check_number("drain_timeout", drain_timeout, 0, MAX_SECONDS)
        check_number("cancel_grace", cancel_grace, 0, MAX_SECONDS)
        self._state = WorkerState(
            domain,
            settings=settings or {},
            drain_timeout=drain_timeout,
            answer_timeout=answer_timeout,
            app_version=own_version() if app_version is None else app_version,
            cancel_grace=cancel_grace,
        )
        self._pool = pool
        types = KnownTypes(registry, domain)
        self._alarm = Alarm(self._state.woken.set)
        self._connections = WorkerConnections(pool)
        self._slots = Slots(self._state, on_outcome=self._on_outcome)
        self._settler = Settler(
            self._connections,
            self._state,
            more_may_come=lambda: self._slots.running_count > 0,
            settled=self._on_settled,
            due_in=self._alarm.told,
        )
        self._heartbeat = Heartbeat(self._connections, self._state, self._slots, self._alarm, types)
        self._transactions = HandlerTransactions(pool, self._state)
        self._leases = Leases(self._connections, self._state, self._slots)
        self._claims = ClaimLoop(
            pool,
            self._state,
            registry,
            types=types,
            slots=self._slots,
            leases=self._leases,
            transactions=self._transactions,
            heartbeat=self._heartbeat,
            alarm=self._alarm,
            is_behind=lambda: self._settler.is_behind,
        )
        self.configure(
            concurrency=concurrency,
            visibility_timeout=visibility_timeout,
            batch_size=batch_size,
            poll_interval=poll_interval,
            handler_timeout=handler_timeout,
            no_handler_after=no_handler_after,
            retry_policy=RetryPolicy() if retry_policy is None else retry_policy,
        )

    def configure(
        self,
        *,
        concurrency: int | None = None,
        visibility_timeout: int | None = None,
        batch_size: int | None = None,
        poll_interval: float | None = None,
        handler_timeout: float | None = None,
        no_handler_after: float | None = None,
        retry_policy: RetryPolicy | None = None,
    ) -> None:
        """Change options, also while running; claims made from now on follow them.

        Raises ValueError for values that make no sense, and changes nothing then.
        """
        for name, count in (("concurrency", concurrency), ("batch_size", batch_size)):
            if count is not None:
                check_whole(name, count, 1, MAX_COUNT)
        if visibility_timeout is not None:
            check_number("visibility_timeout", visibility_timeout, 1, MAX_LEASE_SECONDS)
        if handler_timeout is not None:
            check_number("handler_timeout", handler_timeout, 0, MAX_SECONDS)
        if no_handler_after is not None:
            check_number("no_handler_after", no_handler_after, 0, MAX_SECONDS)
        if poll_interval is not None:
            check_positive("poll_interval", poll_interval)
        if not isinstance(retry_policy, RetryPolicy | None):
            raise TypeError(f"retry_policy is a RetryPolicy, not {shown(retry_policy)}")
        state = self._state
        if concurrency is not None:
            state.concurrency = concurrency
        if visibility_timeout is not None:
            state.visibility_timeout = int(-(-visibility_timeout // 1))
        if batch_size is not None:
            state.batch_size = batch_size
        if poll_interval is not None:
            state.poll_interval = poll_interval
        if handler_timeout is not None:
            state.handler_timeout = handler_timeout
        if no_handler_after is not None:
            state.no_handler_after = no_handler_after
        if retry_policy is not None:
            state.retry_policy = retry_policy
        state.wake()

    @property
    def domain(self) -> str:
        """The domain whose commands it runs."""
        return self._state.domain

    @property
    def settings(self) -> dict[str, Any]:
        """What pages show beside the worker; may be replaced while it runs."""
        return self._state.settings

    @settings.setter
    def settings(self, settings: dict[str, Any]) -> None:
        self._state.settings = settings

    @property
    def worker_id(self) -> int | None:
        """The worker's id in the database; None until it is registered."""
        return self._state.worker_id

    @property
    def registered(self) -> asyncio.Event:
        """Set once the worker has an id."""
        return self._state.registered

    @property
    def registered_id(self) -> int:
        """The worker's id; RuntimeError before ``run()`` got one."""
        return self._state.registered_id

    @property
    def concurrency(self) -> int:
        """How many handlers run at once, at most."""
        return self._state.concurrency

    @property
    def batch_size(self) -> int:
        """How many commands one claim takes, at most."""
        return self._state.batch_size

    @property
    def poll_interval(self) -> float:
        """The longest pause between two looks at an empty queue, in seconds."""
        return self._state.poll_interval

    @property
    def retry_policy(self) -> RetryPolicy:
        """Backoff and default budget."""
        return self._state.retry_policy

    @property
    def running_count(self) -> int:
        """How many handlers run at this moment."""
        return self._slots.running_count

    @property
    def outcomes_recorded(self) -> int:
        """How many outcomes this worker has recorded."""
        return self._state.outcomes_recorded

    # Starting and stopping

    def stop(self, *, force: bool = False) -> None:
        """Ask the worker to stop; callable from any thread, before the start, and again.

        It claims nothing more, gives back what never started, and lets running handlers finish
        within *drain_timeout*; those left then are cancelled and come back when their leases end.
        With *force* nothing is waited for.
        """
        self._state.stop(force=force)

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop()`` was called."""
        return self._state.is_stopping

    async def run(self) -> None:
        """Work until stopped. Faults of the database are waited out; other errors are raised.

        Cancelling ``run()`` equals ``stop(force=True)``: unstarted commands are given back first. A
        second cancellation returns at once. A worker runs once: RuntimeError the next time.

        Raises UnsuitableConnectionError where the pool's sessions are shared between transactions,
        or have a DateStyle or client_encoding with which commands cannot be read; NotMigratedError
        where the database lacks the bus; UnsuitableDatabaseError where PGMQ is too old or row-level
        security hides rows from the pool's role; psycopg_pool's PoolClosed where the pool is not
        open.
        """
        state = self._state
        state.start()
        if state.is_stopping or not await self._until_stopped(self._heartbeat.register()):
            return
        logger.info("worker_started", extra={**state.ids, "concurrency": state.concurrency})
        settling = [
            asyncio.create_task(self._settler.run(), name="settler"),
            asyncio.create_task(self._settler.run_aside(), name="settler of what is put aside"),
        ]
        side_tasks = [
            *settling,
            asyncio.create_task(self._heartbeat.run(), name="heartbeat"),
            asyncio.create_task(self._leases.keep(), name="lease renewal"),
            asyncio.create_task(LoopWatch(state.ids).run(), name="loop watch"),
            asyncio.create_task(
                listen_for_commands(
                    self._pool,
                    state.domain,
                    state.woken.set,
                    self._alarm.told,
                    self._heartbeat.look_now,
                    answer_timeout=state.answer_timeout,
                ),
                name="listener",
            ),
        ]
        for task in side_tasks:
            task.add_done_callback(self._on_side_task_done)
        cancelled: asyncio.CancelledError | None = None
        try:
            try:
                await self._until_stopped(self._claims.run())
            except asyncio.CancelledError as exc:
                cancelled = exc
                state.stop(force=True)
            deadline = state.begin_drain()
            await self._drain(deadline)
            self._settler.close()
            await self._wait_for_settler(settling, deadline)
        finally:
            self._slots.abandon_running()
            await end_tasks(side_tasks)
            results = await asyncio.gather(*side_tasks, return_exceptions=True)
            self._alarm.off()
        await self._heartbeat.end()
        await self._connections.close()
        await self._transactions.close()
        logger.info("worker_stopped", extra=state.ids)
        if cancelled is not None:
            raise cancelled
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _until_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do *work*, which ends after a stop; None where a silent database keeps it from that."""
        task = asyncio.create_task(work)
        stop_asked = asyncio.create_task(self._state.wait_for_stop())
        try:
            await asyncio.wait({task, stop_asked}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=STOP_SECONDS)
        finally:
            await end_tasks([task, stop_asked])
        return None if task.cancelled() else task.result()

    def _on_side_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(
                "side_task_died", extra={**self._state.ids, "task": task.get_name()}, exc_info=error
            )
            self.stop()

    async def _drain(self, deadline: float) -> None:
        """Give back what never started, and let what runs finish until *deadline*."""
        await self._claims.give_back_unstarted()
        await self._claims.wait_until_idle(
            lambda: not self._state.is_forced, deadline - time.monotonic()
        )
        await self._leases.record_cancelled()
        left = self._slots.abandon_running()
        if left:
            logger.warning("handlers_cancelled_by_stop", extra={**self._state.ids, "count": left})
        await self._leases.give_back(self._slots.take_stale())

    async def _wait_for_settler(self, settling: list[asyncio.Task[None]], deadline: float) -> None:
        """Let the settler record what is there; without a database not for ever."""
        left = 0.0 if self._state.is_forced else deadline - time.monotonic()
        seconds = max(left, STOP_SECONDS)
        _, unfinished = await asyncio.wait(settling, timeout=seconds)
        if unfinished:
            held = self._slots.held
            logger.error(
                "outcomes_not_recorded",
                extra={**self._state.ids, "count": len(held), "command_ids": first_ids(held)},
            )

    # Running

    def _on_outcome(self, outcome: Outcome) -> None:
        if outcome.is_recorded:
            self._on_settled(outcome)
        else:
            self._settler.add(outcome)

    def _on_settled(self, outcome: Outcome) -> None:
        self._state.outcomes_recorded += 1
        self._slots.recorded(outcome)
