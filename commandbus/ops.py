"""What operators do with the commands that need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import queries, store
from commandbus.bus import MAX_PAGE, check_connection
from commandbus.checks import check_positive, check_whole
from commandbus.cursors import decode_cursor
from commandbus.deadlines import ANSWER_SECONDS, answered_within
from commandbus.errors import CommandNotFoundError, InvalidStateError
from commandbus.models import (
    CommandStatus,
    OperatorResult,
    OperatorVerdict,
    TroubledCommand,
)
from commandbus.names import (
    MAX_OPERATOR,
    MAX_REASON,
    check_domain,
    check_storable,
    check_text,
    uuid_of,
)
from commandbus.payload import MAX_RESULT_BYTES, json_text
from commandbus.rows import delay_in_seconds

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

DEFAULT_OPERATOR = "unknown"


class TroubleshootingQueue:
    """Commands that no retry will help: list them, and retry, cancel or complete them.

    Each action exists for one command and, with ``_many``, for a set. The first raises
    CommandNotFoundError or InvalidStateError when it cannot be done, the second answers for each
    command. Of two operators who act on one command at once, exactly one wins. *operator* is a name
    of 1 to 200 characters, *reason* and *notes* are texts of at most 4,000. What is no such value
    raises InvalidCommandError or InvalidDomainError, and an unknown domain UnknownDomainError. A
    call that the database has not answered within *answer_timeout* seconds raises NoAnswerError.

    With *conn* an action joins the caller's transaction: it is done if and when that commits. After
    an error that is raised here the transaction goes on as if nothing had been asked.

    What only reads is asked once more where its connection breaks. An action is not: psycopg's
    ``OperationalError`` passes, and whether the action was done is not known. To do it again is
    safe, but an InvalidStateError may then mean that the first call did it. Where the server
    refuses a transaction for another's sake (a deadlock, or under `repeatable read`), nothing was
    done, and without *conn* the call is repeated until *answer_timeout* is over.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
        *,
        answer_timeout: float = ANSWER_SECONDS,
    ) -> None:
        check_positive("answer_timeout", answer_timeout)
        self._pool = pool
        self._answer_timeout = answer_timeout

    async def list(
        self,
        domain: str | None = None,
        *,
        command_type: str | None = None,
        error_code: str | None = None,
        group_id: UUID | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Sequence[TroubledCommand]:
        """The commands in the queue that match, the latest arrivals first.

        For the page after this one give the ``cursor`` of its last command. *limit* is 1 to 1,000.
        Raises ValueError for a limit out of range or a cursor that no command gave.
        """
        check_whole("limit", limit, 1, MAX_PAGE)
        filters = _given(domain, command_type, error_code, group_id)
        before = decode_cursor(cursor)
        return await store.repeated(
            self._pool,
            lambda conn: queries.list_troubled(conn, filters, before=before, limit=limit),
            within=self._answer_timeout,
        )

    async def count(
        self,
        domain: str | None = None,
        *,
        command_type: str | None = None,
        error_code: str | None = None,
        group_id: UUID | None = None,
    ) -> int:
        """How many commands in the queue match."""
        filters = _given(domain, command_type, error_code, group_id)
        return await store.repeated(
            self._pool,
            lambda conn: queries.count_troubled(conn, filters),
            within=self._answer_timeout,
        )

    async def operator_retry(
        self,
        domain: str,
        command_id: UUID,
        operator: str = DEFAULT_OPERATOR,
        *,
        delay_seconds: float = 0,
        conn: AsyncConnection[Any] | None = None,
    ) -> OperatorResult:
        """Put the command back to work, its attempts counted anew.

        With *delay_seconds* it waits that long first, during which ``undo_retry`` takes it back.
        Raises InvalidCommandError for a delay below 0 or above ten years.
        """
        return _single(
            domain,
            await self.operator_retry_many(
                domain, [command_id], operator, delay_seconds=delay_seconds, conn=conn
            ),
        )

    async def operator_retry_many(
        self,
        domain: str,
        command_ids: Sequence[UUID],
        operator: str = DEFAULT_OPERATOR,
        *,
        delay_seconds: float = 0,
        conn: AsyncConnection[Any] | None = None,
    ) -> Sequence[OperatorResult]:
        """``operator_retry`` for a set, with an answer for each command."""
        delay = delay_in_seconds("delay_seconds", delay_seconds)
        return await self._operate(
            conn, "operator_retry", domain, list_of(command_ids), operator, float(delay)
        )

    async def undo_retry(
        self,
        domain: str,
        command_id: UUID,
        operator: str = DEFAULT_OPERATOR,
        *,
        conn: AsyncConnection[Any] | None = None,
    ) -> OperatorResult:
        """Take back a delayed retry that has not begun; the command is back as it was."""
        return _single(
            domain, await self.undo_retry_many(domain, [command_id], operator, conn=conn)
        )

    async def undo_retry_many(
        self,
        domain: str,
        command_ids: Sequence[UUID],
        operator: str = DEFAULT_OPERATOR,
        *,
        conn: AsyncConnection[Any] | None = None,
    ) -> Sequence[OperatorResult]:
        """``undo_retry`` for a set, with an answer for each command."""
        return await self._operate(
            conn, "undo_operator_retry", domain, list_of(command_ids), operator
        )

    async def operator_cancel(
        self,
        domain: str,
        command_id: UUID,
        operator: str = DEFAULT_OPERATOR,
        reason: str | None = None,
        *,
        conn: AsyncConnection[Any] | None = None,
    ) -> OperatorResult:
        """End the command as CANCELLED; its reply is sent."""
        return _single(
            domain,
            await self.operator_cancel_many(domain, [command_id], operator, reason, conn=conn),
        )

    async def operator_cancel_many(
        self,
        domain: str,
        command_ids: Sequence[UUID],
        operator: str = DEFAULT_OPERATOR,
        reason: str | None = None,
        *,
        conn: AsyncConnection[Any] | None = None,
    ) -> Sequence[OperatorResult]:
        """``operator_cancel`` for a set, with an answer for each command."""
        _check_reason("reason", reason)
        return await self._operate(
            conn, "operator_cancel", domain, list_of(command_ids), operator, reason
        )

    async def operator_complete(
        self,
        domain: str,
        command_id: UUID,
        operator: str = DEFAULT_OPERATOR,
        result_data: Any = None,
        *,
        notes: str | None = None,
        conn: AsyncConnection[Any] | None = None,
    ) -> OperatorResult:
        """End the command as COMPLETED with *result_data* as its result; its reply is sent."""
        return _single(
            domain,
            await self.operator_complete_many(
                domain, [command_id], operator, result_data, notes=notes, conn=conn
            ),
        )

    async def operator_complete_many(
        self,
        domain: str,
        command_ids: Sequence[UUID],
        operator: str = DEFAULT_OPERATOR,
        result_data: Any = None,
        *,
        notes: str | None = None,
        conn: AsyncConnection[Any] | None = None,
    ) -> Sequence[OperatorResult]:
        """``operator_complete`` for a set with one result, with an answer for each command.

        Raises InvalidCommandError when *result_data* cannot be stored as JSON, or takes more than
        1,000,000 bytes.
        """
        result = json_text("result_data", result_data, MAX_RESULT_BYTES)
        _check_reason("notes", notes)
        return await self._operate(
            conn, "operator_complete", domain, list_of(command_ids), operator, result, notes
        )

    async def cancel_pending(
        self,
        domain: str,
        command_id: UUID,
        operator: str = DEFAULT_OPERATOR,
        reason: str | None = None,
        *,
        conn: AsyncConnection[Any] | None = None,
    ) -> OperatorResult:
        """Cancel a command that is PENDING, before any worker takes it."""
        _check_reason("reason", reason)
        command_id = uuid_of("command_id", command_id)
        return _single(
            domain,
            await self._operate(conn, "cancel_pending", domain, command_id, operator, reason),
        )

    async def request_cancel(
        self,
        domain: str,
        command_id: UUID,
        operator: str = DEFAULT_OPERATOR,
        reason: str | None = None,
        *,
        conn: AsyncConnection[Any] | None = None,
    ) -> OperatorResult:
        """Ask to cancel a command that is IN_PROGRESS; one that is PENDING is cancelled at once.

        Its worker is told: ``context.cancel_requested`` is true then, and after the worker's
        ``cancel_grace`` the handler's task is cancelled. The command ends as CANCELLED unless its
        result, or its end by a business rule, was recorded before.
        """
        _check_reason("reason", reason)
        command_id = uuid_of("command_id", command_id)
        return _single(
            domain,
            await self._operate(conn, "request_cancel", domain, command_id, operator, reason),
        )

    async def _operate(
        self,
        conn: AsyncConnection[Any] | None,
        function: str,
        domain: str,
        ids: object,
        operator: str,
        *args: Any,
    ) -> Sequence[OperatorResult]:
        check_domain(domain)
        check_text("operator", operator, 1, MAX_OPERATOR)
        if conn is None:
            return await store.repeated(
                self._pool,
                lambda own: store.operate(own, function, domain, ids, operator, *args),
                within=self._answer_timeout,
                where_broken=False,
            )
        check_connection(conn)
        # A savepoint in the caller's transaction, for an unknown domain.
        async with answered_within(self._answer_timeout), conn.transaction():
            return await store.operate(conn, function, domain, ids, operator, *args)


def list_of(command_ids: Sequence[UUID]) -> Sequence[UUID]:
    """The ids as psycopg wants an array: a list, whatever sequence was given."""
    return [uuid_of("command_ids", each) for each in command_ids]


def _check_reason(name: str, reason: object) -> None:
    if reason is not None:
        check_text(name, reason, 0, MAX_REASON)


def _given(
    domain: str | None, command_type: str | None, error_code: str | None, group_id: UUID | None
) -> dict[str, Any]:
    filters: dict[str, Any] = {
        "domain": domain,
        "command_type": command_type,
        "error_code": error_code,
    }
    given = {name: value for name, value in filters.items() if value is not None}
    for name, value in given.items():
        check_storable(name, value)
    return given if group_id is None else {**given, "group_id": uuid_of("group_id", group_id)}


def _single(domain: str, results: Sequence[OperatorResult]) -> OperatorResult:
    """The one answer, or the error that it stands for."""
    [result] = results
    if result.verdict is OperatorVerdict.NOT_FOUND:
        raise CommandNotFoundError(domain, result.command_id)
    if result.verdict is OperatorVerdict.CONFLICT:
        raise InvalidStateError(result.command_id, result.status or CommandStatus.PENDING)
    return result
