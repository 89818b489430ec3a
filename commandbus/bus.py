"""CommandBus: send commands, and ask what became of them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from operator import attrgetter
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import queries, store
from commandbus.checks import (
    MAX_BIGINT,
    MAX_LEASE_SECONDS,
    check_positive,
    check_whole,
    utc,
)
from commandbus.cursors import decode_cursor, encode_cursor
from commandbus.deadlines import ANSWER_SECONDS, answered_within
from commandbus.handoff import event_row
from commandbus.ids import uuid7
from commandbus.lanes import check_lane_group, lane_changes
from commandbus.models import (
    AuditEvent,
    BatchProgress,
    CommandRecord,
    CommandStatus,
    LaneGroup,
    LaneSettings,
    NewCommand,
    OutboxEvent,
    Page,
    Reply,
    SendResult,
)
from commandbus.names import (
    MAX_OPERATOR,
    MAX_REASON,
    check_domain,
    check_function,
    check_storable,
    check_text,
    uuid_of,
)
from commandbus.payload import checked_headers as checked_headers
from commandbus.payload import decode_json
from commandbus.pools import live_connection, mind_pooler
from commandbus.rows import MAX_ATTEMPTS_LIMIT as MAX_ATTEMPTS_LIMIT
from commandbus.rows import SEND_CHUNK as SEND_CHUNK
from commandbus.rows import CommandRow, chunked, command_row
from commandbus.texts import shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg_pool import AsyncConnectionPool

logger = logging.getLogger(__name__)

T = TypeVar("T")

LARGE_BYTES = 100_000
"""Smaller JSON is never refused by the database: it holds no number that is too long, either."""
MAX_PAGE = 1_000


class CommandBus:
    """Sends commands and reads what became of them.

    The pool belongs to the caller, who opens and closes it, on the event loop on which the bus is
    used. A connection that the server has ended meanwhile is passed over, and a call whose
    connection breaks is made once more on another one: sending a known command again does nothing,
    only ``created`` may be False then, though this call created it. Calls with *conn* and sets of
    more than 1,000 are not repeated. A call without *conn* whose transaction the server refuses for
    another's sake (a deadlock, or under `repeatable read` or `serializable`) has done nothing, and
    is repeated after short pauses until *answer_timeout* is over.

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
        headers: Mapping[str, Any] | None = None,
        lane: str | None = None,
    ) -> SendResult:
        """Send one command; it is durable when this returns.

        With *conn* the send joins the caller's transaction: the command exists if and when that
        commits, and after a refusal the transaction goes on as if nothing had been asked. *delay*
        (seconds or a timedelta) is how long it waits before a worker may take it.
        *max_attempts* None means the worker's configured budget. *reply_to* names a PGMQ queue
        that gets one reply when the command ends; ``get_reply_queue`` names a domain's own. The
        queue in which workers look for the commands of a domain takes no replies.
        *batch_id* counts the command among others, for ``get_batch``.
        *headers* go along with the command, to its handler and its reply: a trace
        (``traceparent``), a tenant. They are no part of its content, and take at most 8,192 bytes
        as JSON.
        *lane* (1 to 200 characters) is a key: commands of one lane run one at a time, in the order
        of sending. What stands before its first ``/`` is its group, for which limits and shares
        can be set (``set_lane_group``). A delayed command takes its place when it is due.

        The same *command_id* with the same content again is answered with the first one
        (``created`` is False).

        Raises InvalidDomainError, UnknownDomainError, UnknownReplyQueueError, InvalidCommandError
        (values that cannot be stored) and DuplicateCommandError (a known id with other content).
        """
        check_domain(domain)
        batch_id = None if batch_id is None else uuid_of("batch_id", batch_id)
        command = NewCommand(
            command_type=command_type,
            command_id=command_id,
            data=data,
            correlation_id=correlation_id,
            reply_to=reply_to,
            max_attempts=max_attempts,
            delay=delay,
            headers=headers,
            lane=lane,
        )
        row = command_row(command)
        if conn is not None:
            check_connection(conn)
            async with answered_within(self._answer_timeout), _savepoint(conn, row.text):
                return await store.send_command(conn, domain, row.text, batch_id)
        return await self._call(lambda own: store.send_command(own, domain, row.text, batch_id))

    async def send_many(
        self,
        domain: str,
        commands: Iterable[NewCommand],
        *,
        conn: AsyncConnection[Any] | None = None,
        batch_id: UUID | None = None,
    ) -> list[SendResult]:
        """Send a set of commands, all of them or none; the answers are in the order of *commands*.

        Large sets are sent in chunks of 1,000 within one transaction. Those of one lane take their
        places in the order of *commands*. Raises what ``send`` raises.
        """
        check_domain(domain)
        batch_id = None if batch_id is None else uuid_of("batch_id", batch_id)
        rows = [
            row.placed("lane_position", position) if row.is_laned else row
            for position, row in enumerate(map(command_row, commands))
        ]
        # Sorted across the chunks too: two who send the same ids must not wait for each other.
        chunks = list(chunked(sorted(rows, key=attrgetter("command_id"))))
        answers: dict[UUID, SendResult] = {}
        if conn is not None:
            check_connection(conn)
        if len(chunks) > 1 and conn is not None:
            answers = await self._send_chunks(conn, domain, rows, batch_id)
        elif len(chunks) > 1:
            answers = await store.unrefused(
                lambda: self._send_chunks(None, domain, rows, batch_id),
                within=self._answer_timeout,
            )
        elif chunks and conn is not None:
            async with answered_within(self._answer_timeout), _savepoint(conn, chunks[0]):
                found = await store.offer_commands(conn, domain, chunks[0], batch_id)
                answers.update(_first_of_each(found, answers))
        elif chunks:
            found = await self._call(
                lambda own: store.send_commands(own, domain, chunks[0], batch_id)
            )
            answers.update(_first_of_each(found, answers))
        return [answers[UUID(row.command_id)] for row in rows]

    async def _send_chunks(
        self,
        conn: AsyncConnection[Any] | None,
        domain: str,
        rows: Sequence[CommandRow],
        batch_id: UUID | None,
    ) -> dict[UUID, SendResult]:
        answers: dict[UUID, SendResult] = {}
        async with (
            answered_within(self._answer_timeout) as limit,
            self._given_or_own(conn) as used,
            used.transaction(),  # a savepoint in a transaction of the caller's
        ):
            if conn is None:
                await mind_pooler(used)
            if any(row.is_laned for row in rows):
                # Their order is that of the rows, not that of the ids.
                places = await store.lane_places(used, len(rows))
                rows = [
                    row.placed("lane_seq", place) if row.is_laned else row
                    for row, place in zip(rows, places, strict=True)
                ]
            for chunk in chunked(sorted(rows, key=attrgetter("command_id"))):
                found = await store.send_commands(used, domain, chunk, batch_id)
                answers.update(_first_of_each(found, answers))
                limit.renew()
        return answers

    @asynccontextmanager
    async def _given_or_own(
        self, conn: AsyncConnection[Any] | None
    ) -> AsyncIterator[AsyncConnection[Any]]:
        if conn is not None:
            yield conn
            return
        async with live_connection(self._pool) as own:
            yield own

    async def create_domain(self, name: str) -> None:
        """Create a domain with its command queue and its reply queue; a known one stays as it is.

        Raises InvalidDomainError unless *name* matches ``^[a-z][a-z0-9_]{0,39}$``.
        """
        check_domain(name)
        await self._call(lambda conn: store.create_domain(conn, name))

    async def delete_domain(self, name: str, *, with_replies: bool = False) -> None:
        """Delete a domain with its queues; what has ended in it stays until it is pruned.

        Replies that nobody has read are deleted only *with_replies*. Raises UnknownDomainError, and
        DomainInUseError while commands are open, messages or unread replies are in its queues, or
        open commands of other domains will reply to it.
        """
        check_domain(name)
        if not isinstance(with_replies, bool):
            raise TypeError(f"with_replies is True or False, not {shown(with_replies)}")
        await store.repeated(
            self._pool,
            lambda conn: store.delete_domain(conn, name, with_replies=with_replies),
            within=self._answer_timeout,
            where_broken=False,
        )

    async def set_transition_hook(self, domain: str, function: str | None) -> None:
        """Let an SQL function be told each change of a domain's commands; None: none.

        *function* is its name, ``schema.name`` without quotes. It takes ``(text,
        command_bus.transition[])``: the domain, and for each command of a set its id, the event,
        the status before and after, and the result. Claim, settle, release and operators call it
        once for each set, in the transaction of the change: what it writes, sends
        (``command_bus.send_commands``) and publishes (``command_bus.publish_events``) is there with
        the change or not at all. What it raises undoes the change: a worker logs it and tries
        again, for as long as it takes, and an operator's call raises TransitionHookError. It should
        lock its own rows in the order of the ids, in which it gets them. Sending a command is no
        change.

        Raises UnknownDomainError, and InvalidCommandError where there is no such function.
        """
        check_storable("domain", domain)
        if function is not None:
            check_function(function)
        await self._call(lambda conn: store.set_transition_hook(conn, domain, function))

    async def get_reply_queue(self, domain: str) -> str:
        """The name of the domain's reply queue, for ``reply_to`` and ``read_replies``.

        Raises UnknownDomainError.
        """
        check_storable("domain", domain)
        return await self._call(lambda conn: queries.get_reply_queue(conn, domain))

    async def get_command(self, domain: str, command_id: UUID) -> CommandRecord | None:
        """The command as it stands, or None."""
        check_storable("domain", domain)
        command_id = uuid_of("command_id", command_id)
        return await self._call(lambda conn: queries.get_command(conn, domain, command_id))

    async def query_commands(
        self,
        *,
        status: CommandStatus | str | None = None,
        domain: str | None = None,
        command_type: str | None = None,
        correlation_id: UUID | None = None,
        batch_id: UUID | None = None,
        lane: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page:
        """The commands that match every given filter, newest first, a page at a time.

        *created_after* is inclusive, *created_before* is not; a time without a zone counts in that
        of the session. *limit* is 1 to 1,000. Raises ValueError for a limit out of range, a cursor
        that no page gave, and what no command can have.
        """
        filters = {
            "status": None if status is None else CommandStatus(status).value,
            "domain": domain,
            "command_type": command_type,
            "correlation_id": correlation_id,
            "batch_id": batch_id,
            "lane": lane,
            "created_after": created_after,
            "created_before": created_before,
        }
        given = {
            name: _FILTERS[name](name, value)
            for name, value in filters.items()
            if value is not None
        }
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
        command_id = uuid_of("command_id", command_id)
        _check_if_given("domain", domain)
        return await self._call(lambda conn: queries.get_audit_trail(conn, command_id, domain))

    async def count_by_status(self, domain: str | None = None) -> dict[CommandStatus, int]:
        """How many commands are in each status: exact, and cheap at any number."""
        _check_if_given("domain", domain)
        return await self._call(lambda conn: queries.count_by_status(conn, domain))

    async def get_batch(self, batch_id: UUID) -> BatchProgress | None:
        """The counters and latencies of the commands sent with this *batch_id*, or None."""
        batch_id = uuid_of("batch_id", batch_id)
        return await self._call(lambda conn: queries.get_batch(conn, batch_id))

    async def read_replies(
        self, queue: str, *, limit: int = 10, visibility_timeout: int = 30
    ) -> list[Reply]:
        """Read replies; each comes again after *visibility_timeout* seconds unless acknowledged.

        A message that is no reply is named in the log and left where it is: it may be somebody's
        work, read by a mistake in the name of the queue.

        *limit* is 1 to 1,000. Raises UnknownReplyQueueError when *queue* does not exist or takes
        the commands of a domain, and ValueError for numbers that are out of range.
        """
        check_storable("queue", queue)
        check_whole("limit", limit, 1, MAX_PAGE)
        check_whole("visibility_timeout", visibility_timeout, 0, MAX_LEASE_SECONDS)
        messages = await self._call(
            lambda conn: queries.read_messages(conn, queue, visibility_timeout, limit)
        )
        replies: list[Reply] = []
        for msg_id, message in messages:
            try:
                replies.append(_reply(msg_id, decode_json(message)))
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as exc:
                logger.warning(
                    "message_is_no_reply",
                    extra={"queue": queue, "msg_id": msg_id, "error": repr(exc)},
                )
        return replies

    async def acknowledge_replies(self, queue: str, replies: Iterable[Reply]) -> int:
        """Delete replies that were dealt with; returns how many were still there.

        Raises UnknownReplyQueueError as ``read_replies`` does.
        """
        check_storable("queue", queue)
        msg_ids = [_msg_id(reply) for reply in replies]
        return len(await self._call(lambda conn: queries.delete_messages(conn, queue, msg_ids)))

    async def publish(
        self,
        event_type: str,
        data: Any,
        key: str | None = None,
        *,
        event_id: UUID | None = None,
        headers: Mapping[str, Any] | None = None,
        conn: AsyncConnection[Any] | None = None,
    ) -> UUID:
        """Write an event into the outbox, from which a relay hands it on; returns its id.

        With *conn* it joins the caller's transaction: the event exists if and when that commits. Of
        events with the same *key* (text of 1 to 200 characters) those that are committed first are
        read first; for this a second writer of a key waits until the first one's transaction ends.
        Without *event_id* a call whose connection breaks may have published: then it is repeated,
        with the same id.

        Raises InvalidCommandError for values that cannot be stored.
        """
        given = uuid7() if event_id is None else uuid_of("event_id", event_id)
        events = f"[{event_row(given, event_type, data, key, headers)}]"
        if conn is None:
            await self._call(lambda own: store.publish_events(own, events))
            return given
        check_connection(conn)
        async with answered_within(self._answer_timeout), _savepoint(conn, events):
            await store.publish_events(conn, events)
        return given

    async def read_outbox(self, *, limit: int = 100) -> list[OutboxEvent]:
        """The events that wait in the outbox, the first ones first; they stay there.

        A relay reads, hands on, waits until that is acknowledged, and calls ``delete_events``; an
        event is handed on again where it dies in between. What is read is what is committed, so an
        event whose transaction commits late is read late and never skipped. Events of one key stay
        in order while one relay at a time does this.

        *limit* is 1 to 1,000; ValueError otherwise.
        """
        check_whole("limit", limit, 1, MAX_PAGE)
        return await self._call(lambda conn: queries.read_outbox(conn, limit))

    async def delete_events(self, events: Iterable[OutboxEvent]) -> int:
        """Delete events that were handed on; returns how many of them were still there."""
        positions = [_position(event) for event in events]
        return await self._call(lambda conn: store.delete_events(conn, positions))

    async def set_lane_group(
        self,
        domain: str,
        group: str,
        *,
        max_in_flight: int | EllipsisType | None = ...,
        weight: float | EllipsisType = ...,
        lane_limit: int | EllipsisType = ...,
        on_trouble: str | EllipsisType = ...,
        operator: str = "unknown",
        conn: AsyncConnection[Any] | None = None,
    ) -> LaneSettings:
        """Change settings of a group of lanes while everything runs; returns what holds then.

        What is left out (``...``) stays as it is. *group* is what stands before the first ``/`` of
        a lane, "" that of lanes without one; ``*`` stands for all groups that have no settings of
        their own.
        *max_in_flight* commands of the group are on their way at once (0: nothing new starts, None:
        no limit); of each lane *lane_limit* (1 to 10,000). Beside other groups it gets a share of
        *weight* (0.001 to 1,000). A command in the troubleshooting queue holds its lane where
        *on_trouble* is "hold"; with "skip" the lane goes on.

        Raises UnknownDomainError, and InvalidCommandError for values out of range.
        """
        check_domain(domain)
        check_text("operator", operator, 1, MAX_OPERATOR)
        given = {
            "max_in_flight": max_in_flight,
            "weight": weight,
            "lane_limit": lane_limit,
            "on_trouble": on_trouble,
        }
        changes = lane_changes({name: value for name, value in given.items() if value is not ...})
        check_lane_group(group)
        if conn is not None:
            check_connection(conn)
            async with answered_within(self._answer_timeout), conn.transaction():
                return await store.set_lane_group(conn, domain, group, changes, operator)
        return await self._call(
            lambda own: store.set_lane_group(own, domain, group, changes, operator)
        )

    async def reset_lane_group(self, domain: str, group: str) -> bool:
        """Take a group's own settings back; returns whether it had any."""
        check_domain(domain)
        check_lane_group(group)
        return await self._call(lambda conn: store.reset_lane_group(conn, domain, group))

    async def lane_groups(self, domain: str | None = None) -> list[LaneGroup]:
        """The groups of lanes that have work, had some a short time ago, or have settings."""
        _check_if_given("domain", domain)
        return await self._call(lambda conn: queries.lane_groups(conn, domain))

    async def request_stop(self, worker_id: int | None, by: str) -> int:
        """Ask one worker (None: every one) to stop, whatever its host; returns how many were asked.

        Each lets its running handlers finish first, as ``Worker.stop()`` does. *by* is shown beside
        the worker.
        """
        if worker_id is not None:
            check_whole("worker_id", worker_id, 1, MAX_BIGINT)
        check_text("by", by, 1, MAX_OPERATOR)
        return await self._call(lambda conn: store.request_stop(conn, worker_id, by))

    async def record_replacement(self, worker_id: int, replaced_id: int, how: str) -> None:
        """Record that a worker was started in place of another, whose process has ended.

        For programs that supervise worker processes; *how* says in words how that one ended.
        """
        check_whole("worker_id", worker_id, 1, MAX_BIGINT)
        check_whole("replaced_id", replaced_id, 1, MAX_BIGINT)
        check_text("how", how, 1, MAX_REASON)
        await self._call(lambda conn: store.record_replacement(conn, worker_id, replaced_id, how))

    async def fold_counters(self) -> int:
        """Fold the counts of recent sends into the counters; returns how many there were.

        Workers do it once a second. Counts are right without it, but slower to read where commands
        are sent and no worker runs.
        """
        return await self._call(store.fold_deltas)

    @staticmethod
    async def server_time(conn: AsyncConnection[Any]) -> datetime:
        """The time by the server's clock, in UTC; every moment that the bus stores is by it."""
        return await store.server_time(conn)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection with an open transaction, to be given to ``send(conn=…)``.

        It commits at the end of the block. Raises TransactionRolledBackError where it cannot,
        since a statement had failed, whose error the block has swallowed.
        """
        async with (
            answered_within(self._answer_timeout) as limit,
            live_connection(self._pool) as conn,
            store.transaction(conn),
        ):
            await mind_pooler(conn)
            limit.pause()  # what the caller does takes as long as it takes
            try:
                yield conn
            finally:
                limit.renew()


def _savepoint(conn: AsyncConnection[Any], text: str) -> AbstractAsyncContextManager[object]:
    """What undoes, in the caller's transaction, a refusal of *text*, which is read outside of ours.

    Not for small ones: of many savepoints in one transaction each costs more.
    """
    return conn.transaction() if len(text) > LARGE_BYTES else nullcontext()


def _first_of_each(
    found: Iterable[SendResult], known: dict[UUID, SendResult]
) -> dict[UUID, SendResult]:
    """The first answer for each id, where there are several."""
    first: dict[UUID, SendResult] = {}
    for result in found:
        if result.command_id not in known:
            first.setdefault(result.command_id, result)
    return first


def check_connection(conn: object) -> None:
    """Raises TypeError unless *conn* is an asynchronous connection of psycopg."""
    if not isinstance(conn, AsyncConnection):
        raise TypeError(f"conn must be a psycopg AsyncConnection, not {shown(conn)}")


def _check_if_given(name: str, value: object) -> None:
    if value is not None:
        check_storable(name, value)


def _text(name: str, value: str) -> str:
    check_storable(name, value)
    return value


_FILTERS: dict[str, Callable[[str, Any], Any]] = {
    "status": lambda _, value: value,
    "domain": _text,
    "command_type": _text,
    "correlation_id": uuid_of,
    "batch_id": uuid_of,
    "lane": _text,
    "created_after": utc,
    "created_before": utc,
}
"""How each filter's value is checked, and made what the database knows."""


def _position(event: object) -> int:
    if not isinstance(event, OutboxEvent):
        raise TypeError(f"events are what read_outbox gave, not {shown(event)}")
    check_whole("position", event.position, 1, MAX_BIGINT)
    return event.position


def _msg_id(reply: object) -> int:
    if not isinstance(reply, Reply):
        raise TypeError(f"replies are what read_replies gave, not {shown(reply)}")
    check_whole("msg_id", reply.msg_id, 1, MAX_BIGINT)
    return reply.msg_id


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
        operator=message.get("operator"),
        reason=message.get("reason"),
        headers=message.get("headers") or {},
    )
