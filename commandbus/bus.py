"""CommandBus: send commands, and ask what became of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import queries, store
from commandbus.checks import check_positive, check_whole, is_number
from commandbus.cursors import decode_cursor, encode_cursor
from commandbus.errors import InvalidCommandError, InvalidDomainError
from commandbus.limits import ANSWER_SECONDS, answered_within
from commandbus.models import (
    AuditEvent,
    BatchProgress,
    CommandRecord,
    CommandStatus,
    NewCommand,
    Page,
    Reply,
    SendResult,
)
from commandbus.payload import check_json
from commandbus.poolers import mind_pooler
from commandbus.pools import live_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg_pool import AsyncConnectionPool

logger = logging.getLogger(__name__)

T = TypeVar("T")

DOMAIN_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,39}")
SEND_CHUNK = 1000
MAX_ATTEMPTS_LIMIT = 1_000
MAX_DELAY_SECONDS = 10 * 366 * 86_400
MAX_PAGE = 1_000
MAX_VISIBILITY_SECONDS = 366 * 86_400


class CommandBus:
    """Sends commands and reads what became of them.

    The pool belongs to the caller, who opens and closes it, on the event loop on which the bus is
    used. A connection that the server has ended meanwhile is passed over, and a call whose
    connection breaks is made once more on another one: sending a known command again does nothing,
    only ``created`` may be False then, though this call created it. Calls with *conn* and sets of
    more than 1,000 are not repeated.

    Errors are those of :mod:`commandbus.errors`; faults of the connection pass as psycopg's
    ``OperationalError``: whether the command was sent is not known then, and it may be sent again
    with the same ``command_id``. A call that the database has not answered within *answer_timeout*
    seconds raises NoAnswerError, which is such a fault.
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

    async def _call(self, call: Callable[[AsyncConnection[TupleRow]], Awaitable[T]]) -> T:
        return await store.repeated(self._pool, call, within=self._answer_timeout)

    async def send(
        self,
        domain: str,
        command_type: str,
        command_id: UUID,
        data: Any,
        correlation_id: UUID | None = None,
        reply_to: str | None = None,
        max_attempts: int | None = None,
        delay: float | timedelta | None = None,
        conn: AsyncConnection[Any] | None = None,
        batch_id: UUID | None = None,
    ) -> SendResult:
        """Send one command; it is durable when this returns.

        With *conn* the send joins the caller's transaction: the command exists if and when that
        commits. *delay* (seconds or a timedelta) is how long it waits before a worker may take it.
        *max_attempts* None means the worker's configured budget. *reply_to* names a PGMQ queue
        that gets one reply when the command ends; ``get_reply_queue`` names a domain's own.
        *batch_id* counts the command among others, for ``get_batch``.

        The same *command_id* with the same content again is answered with the first one
        (``created`` is False).

        Raises InvalidDomainError, UnknownDomainError, UnknownReplyQueueError, InvalidCommandError
        (values that cannot be stored) and DuplicateCommandError (a known id with other content).
        """
        command = NewCommand(
            command_type=command_type,
            command_id=command_id,
            data=data,
            correlation_id=correlation_id,
            reply_to=reply_to,
            max_attempts=max_attempts,
            delay=delay,
        )
        _check_domain(domain)
        row = _row(command)
        if conn is not None:
            async with answered_within(self._answer_timeout):
                return await store.send_command(conn, domain, row, batch_id)
        return await self._call(lambda own: store.send_command(own, domain, row, batch_id))

    async def send_many(
        self,
        domain: str,
        commands: Iterable[NewCommand],
        *,
        conn: AsyncConnection[Any] | None = None,
        batch_id: UUID | None = None,
    ) -> list[SendResult]:
        """Send a set of commands, all of them or none; the answers are in the order of *commands*.

        Large sets are sent in chunks of 1,000 within one transaction. Raises what ``send`` raises.
        """
        _check_domain(domain)
        rows = [_row(command) for command in commands]
        if conn is not None:
            async with answered_within(self._answer_timeout) as limit:
                return await self._send_rows(conn, domain, rows, batch_id, limit)
        if len(rows) <= SEND_CHUNK:
            return await self._call(lambda own: self._send_rows(own, domain, rows, batch_id))
        async with (
            answered_within(self._answer_timeout) as limit,
            live_connection(self._pool) as own,
            own.transaction(),
        ):
            await mind_pooler(own)
            return await self._send_rows(own, domain, rows, batch_id, limit)

    async def _send_rows(
        self,
        conn: AsyncConnection[Any],
        domain: str,
        rows: Sequence[dict[str, Any]],
        batch_id: UUID | None,
        limit: answered_within | None = None,
    ) -> list[SendResult]:
        answers: dict[UUID, SendResult] = {}
        # Sorted across the chunks too: two who send the same ids must not wait for each other.
        in_order = sorted(rows, key=itemgetter("command_id"))
        for start in range(0, len(rows), SEND_CHUNK):
            chunk = in_order[start : start + SEND_CHUNK]
            for result in await store.send_commands(conn, domain, chunk, batch_id):
                answers.setdefault(result.command_id, result)
            if limit is not None:
                limit.renew()
        return [answers[UUID(row["command_id"])] for row in rows]

    async def create_domain(self, name: str) -> None:
        """Create a domain with its command queue and its reply queue; a known one stays as it is.

        Raises InvalidDomainError unless *name* matches ``^[a-z][a-z0-9_]{0,39}$``.
        """
        _check_domain(name)
        await self._call(lambda conn: store.create_domain(conn, name))

    async def get_reply_queue(self, domain: str) -> str:
        """The name of the domain's reply queue, for ``reply_to`` and ``read_replies``.

        Raises UnknownDomainError.
        """
        return await self._call(lambda conn: queries.get_reply_queue(conn, domain))

    async def get_command(self, domain: str, command_id: UUID) -> CommandRecord | None:
        """The command as it stands, or None."""
        return await self._call(lambda conn: queries.get_command(conn, domain, command_id))

    async def query_commands(
        self,
        *,
        status: CommandStatus | str | None = None,
        domain: str | None = None,
        command_type: str | None = None,
        correlation_id: UUID | None = None,
        batch_id: UUID | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page:
        """The commands that match every given filter, newest first, a page at a time.

        *created_after* is inclusive, *created_before* is not; a time without a zone counts in that
        of the session. *limit* is 1 to 1,000. Raises ValueError for a limit out of range or a
        cursor that no page gave.
        """
        filters = {
            "status": None if status is None else CommandStatus(status).value,
            "domain": domain,
            "command_type": command_type,
            "correlation_id": correlation_id,
            "batch_id": batch_id,
            "created_after": created_after,
            "created_before": created_before,
        }
        given = {name: value for name, value in filters.items() if value is not None}
        check_whole("limit", limit, 1, MAX_PAGE)
        before = decode_cursor(cursor)
        found = await self._call(
            lambda conn: queries.query_commands(conn, given, before=before, limit=limit + 1)
        )
        page = found[:limit]
        more = len(found) > limit
        return Page(
            commands=page,
            next_cursor=encode_cursor(page[-1].created_at, page[-1].command_id) if more else None,
        )

    async def get_audit_trail(
        self, command_id: UUID, domain: str | None = None
    ) -> list[AuditEvent]:
        """Everything that happened to a command, oldest first; empty for an unknown one.

        Without *domain* an id that exists in several domains gives the events of all of them.
        """
        return await self._call(lambda conn: queries.get_audit_trail(conn, command_id, domain))

    async def count_by_status(self, domain: str | None = None) -> dict[CommandStatus, int]:
        """How many commands are in each status: exact, and cheap at any number."""
        return await self._call(lambda conn: queries.count_by_status(conn, domain))

    async def get_batch(self, batch_id: UUID) -> BatchProgress | None:
        """The counters and latencies of the commands sent with this *batch_id*, or None."""
        return await self._call(lambda conn: queries.get_batch(conn, batch_id))

    async def read_replies(
        self, queue: str, *, limit: int = 10, visibility_timeout: int = 30
    ) -> list[Reply]:
        """Read replies; each comes again after *visibility_timeout* seconds unless acknowledged.

        A message that is no reply is named in the log and left where it is: it may be somebody's
        work, read by a mistake in the name of the queue.

        *limit* is 1 to 1,000. Raises UnknownReplyQueueError when *queue* does not exist, and
        ValueError for numbers that are out of range.
        """
        check_whole("limit", limit, 1, MAX_PAGE)
        check_whole("visibility_timeout", visibility_timeout, 0, MAX_VISIBILITY_SECONDS)
        messages = await self._call(
            lambda conn: queries.read_messages(conn, queue, visibility_timeout, limit)
        )
        replies: list[Reply] = []
        for msg_id, message in messages:
            try:
                replies.append(_reply(msg_id, message))
            except (AttributeError, KeyError, TypeError, ValueError) as exc:
                logger.warning(
                    "message_is_no_reply",
                    extra={"queue": queue, "msg_id": msg_id, "error": repr(exc)},
                )
        return replies

    async def acknowledge_replies(self, queue: str, replies: Iterable[Reply]) -> int:
        """Delete replies that were dealt with; returns how many were still there."""
        msg_ids = [reply.msg_id for reply in replies]
        return len(await self._call(lambda conn: queries.delete_messages(conn, queue, msg_ids)))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection with an open transaction, to be given to ``send(conn=…)``."""
        async with (
            answered_within(self._answer_timeout) as limit,
            live_connection(self._pool) as conn,
            conn.transaction(),
        ):
            await mind_pooler(conn)
            limit.pause()  # what the caller does takes as long as it takes
            try:
                yield conn
            finally:
                limit.renew()


def _check_domain(domain: str) -> None:
    if DOMAIN_PATTERN.fullmatch(str(domain)) is None:
        raise InvalidDomainError(
            f"domain name {domain!r:.100} is not allowed: it must match ^[a-z][a-z0-9_]{{0,39}}$"
        )


def _row(command: NewCommand) -> dict[str, Any]:
    """The command as the SQL function takes it; raises InvalidCommandError for bad values."""
    row: dict[str, Any] = {
        "command_id": str(_uuid("command_id", command.command_id)),
        "command_type": command.command_type,
        "data": {} if command.data is None else command.data,
    }
    command_type: object = command.command_type  # of any type, where nobody checks types
    if not isinstance(command_type, str) or not 1 <= len(command_type) <= 200:
        raise InvalidCommandError("command_type must be text of 1 to 200 characters")
    if command.correlation_id is not None:
        row["correlation_id"] = str(_uuid("correlation_id", command.correlation_id))
    if command.reply_to is not None:
        row["reply_to"] = command.reply_to
    if command.max_attempts is not None:
        if (
            type(command.max_attempts) is not int
            or not 1 <= command.max_attempts <= MAX_ATTEMPTS_LIMIT
        ):
            raise InvalidCommandError(f"max_attempts must be between 1 and {MAX_ATTEMPTS_LIMIT}")
        row["max_attempts"] = command.max_attempts
    if command.delay is not None:
        row["delay_seconds"] = delay_in_seconds("delay", command.delay)
    check_json("data", row["data"])
    return row


def _uuid(name: str, value: object) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value if isinstance(value, str) else "")
    except ValueError as exc:
        raise InvalidCommandError(f"{name} must be a UUID") from exc


def delay_in_seconds(name: str, delay: object) -> float:
    """*delay* in seconds; raises InvalidCommandError where it is none."""
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if not is_number(seconds) or not 0 <= seconds <= MAX_DELAY_SECONDS:
        raise InvalidCommandError(
            f"{name} must be seconds or a timedelta from 0 to ten years, not {delay!r:.100}"
        )
    return seconds


def _reply(msg_id: int, message: Any) -> Reply:
    correlation_id = message.get("correlation_id")
    return Reply(
        msg_id=msg_id,
        command_id=UUID(message["command_id"]),
        correlation_id=UUID(correlation_id) if correlation_id else None,
        domain=message["domain"],
        command_type=message["command_type"],
        status=CommandStatus(message["status"]),
        result=message.get("result"),
        error=message.get("error"),
    )
