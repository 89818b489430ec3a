"""One attempt of one command: the token it holds, the lease it has, and running its handler."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from psycopg import AsyncConnection

from commandbus import outcomes
from commandbus.errors import (
    INFRASTRUCTURE_ERRORS,
    REFUSED_TRANSACTIONS,
    HandlerError,
    LeaseLostError,
)
from commandbus.failures import as_text, deciding, describe, explains_more, leaves
from commandbus.handlers import RegisteredHandler, awaited_result, context_of, end_context
from commandbus.models import ClaimedCommand, Outcome, OutcomeKind
from commandbus.retry import RetryPolicy
from commandbus.transactions import HandlerTransactions, TransactionFaultError

logger = logging.getLogger(__name__)

_FAULTS: tuple[type[Exception], ...] = (TransactionFaultError, *INFRASTRUCTURE_ERRORS)

# Types of results that are nothing to await, as nearly all are.
_PLAIN = {type(None), bool, int, float, str, list, dict, tuple}

Renew = Callable[["Attempt", int], Awaitable[bool]]


class Attempt:
    """What a worker holds: a claimed command until its outcome is recorded.

    *deadline* is the end of the lease on this process's monotonic clock, counted from before the
    claim was asked for, so that it is never later than the database's. *timeout* (seconds; 0: none)
    is that of handlers which have none of their own.
    """

    __slots__ = (
        "_limit",
        "_renew",
        "abandoned",
        "cancel_requested",
        "claimed",
        "deadline",
        "ended",
        "gives_back",
        "handler",
        "lease_seconds",
        "started",
        "task",
        "timeout",
        "token",
        "transactions",
        "was_cancelled",
    )

    def __init__(
        self,
        claimed: ClaimedCommand,
        handler: RegisteredHandler,
        *,
        deadline: float,
        lease_seconds: int,
        renew: Renew,
        transactions: HandlerTransactions,
        timeout: float = 0.0,
    ) -> None:
        self.claimed = claimed
        self.token = claimed.token
        self.handler = handler
        self.deadline = deadline
        self.lease_seconds = lease_seconds
        self.started: float | None = None
        self.task: asyncio.Task[None] | None = None
        self.abandoned = False
        self.gives_back = False
        """Whether a fault of the database undid it, so that it shall spend no attempt."""
        self.cancel_requested = False
        """Whether an operator asks to cancel it."""
        self.was_cancelled = False
        """Whether it ended by that."""
        self.ended = False
        """Whether there is an outcome, which is recorded or will be."""
        self.timeout = timeout if handler.timeout is None else handler.timeout
        self._limit: asyncio.Timeout | None = None
        self._renew = renew
        self.transactions = transactions

    @property
    def auto_renew(self) -> bool:
        """Whether the lease is to be made longer while the handler runs.

        Not when its time is over: one that ignores its cancellation is given up with its lease.
        """
        return self.handler.auto_renew and not self._is_overdue

    @property
    def _is_overdue(self) -> bool:
        return self._limit is not None and self._limit.expired()

    def abandon(self) -> None:
        """Cancel the handler; the attempt is over or will be, and what it raises is no outcome."""
        self.abandoned = True
        if self.task is not None:
            self.task.cancel()

    def cancel(self) -> None:
        """Cancel the handler because an operator asked for it, unless it has ended."""
        if self.task is not None and not (self.ended or self.abandoned):
            self.task.cancel()

    async def extend(self, seconds: float) -> None:
        """Make the lease end *seconds* from now; raises LeaseLostError when the attempt is over."""
        whole = max(1, int(-(-seconds // 1)))
        given_up = self.abandoned or self._is_overdue
        if given_up or not await self._renew(self, whole):
            raise LeaseLostError(f"the lease of command {self.claimed.command.command_id} is over")

    async def run(self, policy: RetryPolicy) -> Outcome | None:
        """Run the handler; every failure becomes an outcome. None: abandoned, there is none."""
        claimed = self.claimed
        self.started = time.monotonic()
        if claimed.undecodable is not None:
            return outcomes.undecodable(claimed, policy)
        if self.handler.transactional:
            return await self._run_in_transaction(self.handler, policy)
        return await self._run(self.handler, policy, None)

    async def _run(
        self, handler: RegisteredHandler, policy: RetryPolicy, conn: AsyncConnection[Any] | None
    ) -> Outcome | None:
        claimed = self.claimed
        context = context_of(claimed, self.extend, conn, self._is_to_be_cancelled)
        try:
            if self.timeout:
                async with asyncio.timeout(self.timeout) as self._limit:
                    result = await handler.run(claimed.command, context)
                    if type(result) not in _PLAIN:
                        result = await awaited_result(result)
            else:
                result = await handler.run(claimed.command, context)
                if type(result) not in _PLAIN:
                    result = await awaited_result(result)
        except BaseException as exc:
            if conn is not None and (conn.broken or isinstance(exc, REFUSED_TRANSACTIONS)):
                raise TransactionFaultError from exc
            return self._failure(exc, policy)
        finally:
            follow_ups = end_context(context)
        try:
            return outcomes.success(claimed, self._run_us(), result, follow_ups)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as exc:  # noqa: BLE001 - a result's own methods may raise anything
            return outcomes.unreadable_result(claimed, self._run_us(), exc)

    async def _run_in_transaction(
        self, handler: RegisteredHandler, policy: RetryPolicy
    ) -> Outcome | None:
        """Run the handler in a transaction that is committed with its success, or undone.

        None: abandoned, or undone by a fault that is not the handler's.
        """
        outcome, has_begun = None, False
        try:
            async with self.transactions.connection() as conn, conn.transaction() as block:
                has_begun = True
                ran = await self._run(handler, policy, conn)
                if ran is not None and ran.kind is OutcomeKind.SUCCESS:
                    ran = await self.transactions.settle(conn, ran, policy, until=self.deadline)
                outcome = ran  # a success only if it is recorded
                if outcome is None or not outcome.is_recorded:
                    raise psycopg.Rollback(block)
        except _FAULTS as exc:
            if outcome is not None and not outcome.is_recorded:
                return outcome  # only the rollback failed
            if not self.abandoned:
                await self.transactions.back_off(self.claimed.log_fields, exc)
                command_id = self.claimed.command.command_id
                if has_begun and self.transactions.spends_an_attempt(command_id, exc):
                    return outcomes.transaction_fault(self.claimed, self._run_us(), exc, policy)
                self.gives_back = True
            return None
        except psycopg.Error as exc:  # what is checked at the end, a deferred constraint
            return self._failure(exc, policy)
        return outcome

    def _is_to_be_cancelled(self) -> bool:
        return self.cancel_requested

    def _failure(self, error: BaseException, policy: RetryPolicy) -> Outcome | None:
        """The outcome of what the handler raised, which is logged. None: it was abandoned."""
        try:
            return self._told_failure(error, policy)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as exc:  # noqa: BLE001 - an exception's own attributes may raise anything
            if self.abandoned:
                return None
            outcome = outcomes.unreadable_error(self.claimed, self._run_us(), error, exc, policy)
            logger.warning(
                "handler_raised",
                extra={
                    **self.claimed.log_fields,
                    "error_code": outcome.error_code,
                    "error": outcome.error_message,
                    "traceback": outcome.error_details["traceback"],
                },
            )
            return outcome

    def _told_failure(self, error: BaseException, policy: RetryPolicy) -> Outcome | None:
        claimed = self.claimed
        if self._is_overdue and isinstance(error, TimeoutError):
            return outcomes.timed_out(claimed, self._run_us(), self.timeout, policy, error)
        cancelled_only = True
        for each in leaves(error):
            if isinstance(each, (KeyboardInterrupt, GeneratorExit)):
                raise each  # not the handler's: somebody ends the program, or the loop this task
            cancelled_only = cancelled_only and isinstance(each, asyncio.CancelledError)
        if cancelled_only and self.abandoned:
            return None
        # Where it was not abandoned, the handler itself raised CancelledError: an unexpected
        # error like any other.
        outcome = outcomes.failure(claimed, self._run_us(), error, policy)
        if self.cancel_requested and outcome.kind is OutcomeKind.TRANSIENT:
            self.was_cancelled = True
            return None
        self._log(error, outcome)
        return outcome

    def _log(self, error: BaseException, outcome: Outcome) -> None:
        """Log where *error* came from, unless it says all by itself."""
        decided = deciding(error)
        level = logging.INFO if isinstance(decided, HandlerError) else logging.WARNING
        if not logger.isEnabledFor(level) or (error is decided and not explains_more(decided)):
            return
        record = logger.makeRecord(
            logger.name,
            level,
            __file__,
            0,
            "handler_raised",
            (),
            (type(error), error, error.__traceback__),
            "_log",
            {**self.claimed.log_fields, "error_code": outcome.error_code},
        )
        has_own = getattr(decided, "details", None) is not None
        found = describe(error, decided) if has_own else outcome.error_details
        # Formatters take this text in place of the whole traceback, which has no bound.
        record.exc_text = as_text(found, decided)
        logger.handle(record)

    def _run_us(self) -> int:
        return int((time.monotonic() - (self.started or 0.0)) * 1_000_000)
