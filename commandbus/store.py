"""One Python function for each SQL function; what is only read stands in queries.py.

Every function takes a connection and never commits: the caller owns the transaction. On a
connection in autocommit mode each call is a transaction of its own, in one round trip.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, AsyncCursor, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row
from psycopg.types.json import Jsonb

from commandbus.backoff import Backoff
from commandbus.deadlines import AGAIN_SECONDS
from commandbus.errors import (
    REFUSED_TRANSACTIONS,
    NoAnswerError,
    TransactionRolledBackError,
    UnsuitableConnectionError,
    one_line,
    refusal_error,
    translate_errors,
)
from commandbus.models import (
    ClaimedCommand,
    Command,
    CommandStatus,
    LaneSettings,
    OperatorResult,
    OperatorVerdict,
    SendResult,
    Settlement,
    Verdict,
)
from commandbus.payload import decode_json
from commandbus.pools import Connection as Connection
from commandbus.pools import Pool
from commandbus.pools import autocommit as autocommit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A call of json.dumps with options makes an encoder each time, which costs more than its work.
_encode = json.JSONEncoder(separators=(",", ":")).encode


@asynccontextmanager
async def translated(pool: Pool, *, within: float) -> AsyncIterator[Connection]:
    """`autocommit` with the server's errors turned into ours, for what users call."""
    async with autocommit(pool, within=within) as conn:
        with translate_errors():
            yield conn


@asynccontextmanager
async def transaction(conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """A transaction on *conn*, for what others do in it.

    Raises TransactionRolledBackError where its end is no commit: the server answers a COMMIT of a
    transaction in which a statement has failed with a ROLLBACK, which is no error to it.
    """
    async with conn.transaction():
        yield
        match conn.info.transaction_status:
            case TransactionStatus.INERROR:
                raise TransactionRolledBackError(
                    "a statement in the transaction had failed, so nothing of it was saved;"
                    " what may fail belongs into a savepoint (async with conn.transaction())"
                )
            case TransactionStatus.IDLE:
                raise TransactionRolledBackError(
                    "the transaction was ended inside of its block, by somebody's own statement"
                )
            case _:
                pass


async def repeated(
    pool: Pool,
    call: Callable[[Connection], Awaitable[T]],
    *,
    within: float,
    where_broken: bool = True,
) -> T:
    """What *call* returns on a connection as `translated` gives it; all calls share *within*.

    It is called again where the server refuses it as `unrefused` says. Where the connection breaks
    it is called once more on another one, unless *where_broken* is false. Only what
    does no harm when it is done twice may be: what reads, or names by an id what it sends.
    """
    deadline = time.monotonic() + within
    used: list[Connection] = []

    async def once() -> T:
        left = max(deadline - time.monotonic(), AGAIN_SECONDS) if used else within
        async with translated(pool, within=left) as conn:
            used.append(conn)
            return await call(conn)

    try:
        return await unrefused(once, within=within)
    except psycopg.OperationalError as exc:
        is_broken = where_broken and bool(used) and used[-1].broken
        if not is_broken or isinstance(exc, NoAnswerError):
            raise
        logger.info("call_repeated", extra={"error": one_line(exc)})
    return await unrefused(once, within=deadline - time.monotonic())


async def unrefused(call: Callable[[], Awaitable[T]], *, within: float) -> T:
    """What *call*, a transaction, returns; called again for *within* seconds where it was refused.

    The server refuses one of two transactions that wait for each other. Where `repeatable read` or
    `serializable` is the default, it refuses one that saw what has changed meanwhile. Nothing of a
    refused one has happened.
    """
    deadline = time.monotonic() + within
    backoff = Backoff()
    while True:
        try:
            return await call()
        except REFUSED_TRANSACTIONS as exc:
            pause = backoff.next_delay()
            if time.monotonic() + pause >= deadline:
                raise
            logger.info("call_repeated", extra={"error": one_line(exc)})
        await asyncio.sleep(pause)


async def fetch(
    conn: AsyncConnection[Any], query: str, params: Sequence[Any] = ()
) -> list[TupleRow]:
    """The answer's rows as tuples, also on a connection of a caller who gets them otherwise."""
    async with AsyncCursor(conn, row_factory=tuple_row) as cur:
        await cur.execute(query.encode(), params)
        return await cur.fetchall()


# Sending


async def send_commands(
    conn: AsyncConnection[Any], domain: str, commands: str, batch_id: UUID | None
) -> list[SendResult]:
    """Send all of *commands*, a JSON array, or none; answers in any order.

    A refusal aborts the transaction.
    """
    query = f"select {_SENT} from command_bus.send_commands(%s, %s::jsonb, %s)"  # nosec B608
    with translate_errors():
        rows = await fetch(conn, query, (domain, commands, batch_id))
    return [_send_result(*row) for row in rows]


async def offer_commands(
    conn: AsyncConnection[Any], domain: str, commands: str, batch_id: UUID | None
) -> list[SendResult]:
    """The same inside the caller's transaction, which goes on after a refusal."""
    query = f"select {_OFFERED} from command_bus.offer_commands(%s, %s::jsonb, %s)"  # nosec B608
    return await _offer(conn, query, (domain, commands, batch_id))


async def send_command(
    conn: AsyncConnection[Any], domain: str, command: str, batch_id: UUID | None
) -> SendResult:
    """Send one command, inside the caller's transaction, which goes on after a refusal."""
    query = f"select {_OFFERED} from command_bus.offer_command(%s, %s::jsonb, %s)"  # nosec B608
    [result] = await _offer(conn, query, (domain, command, batch_id))
    return result


_SENT = "command_id, msg_id, created, status"
_OFFERED = f"{_SENT}, refusal::text"


async def _offer(
    conn: AsyncConnection[Any], query: str, params: tuple[Any, ...]
) -> list[SendResult]:
    with translate_errors():
        rows = await fetch(conn, query, params)
    for *_, refusal in rows:
        if refusal is not None:
            raise refusal_error(json.loads(refusal))
    return [_send_result(*row) for *row, _ in rows]


def _send_result(command_id: UUID, msg_id: int | None, created: bool, status: str) -> SendResult:
    return SendResult(command_id, msg_id, created, CommandStatus(status))


async def create_domain(conn: Connection, domain: str) -> None:
    """Create a domain with its queues, or leave the known one as it is."""
    with translate_errors():
        await conn.execute("select command_bus.create_domain(%s)", (domain,))


async def delete_domain(conn: Connection, domain: str, *, with_replies: bool) -> None:
    """Delete a domain with its queues, unless work is open."""
    with translate_errors():
        await conn.execute("select command_bus.delete_domain(%s, %s)", (domain, with_replies))


async def set_transition_hook(conn: Connection, domain: str, function: str | None) -> None:
    """Let a function be told the changes of a domain's commands; None: none."""
    with translate_errors():
        await conn.execute("select command_bus.set_transition_hook(%s, %s)", (domain, function))


async def lane_places(conn: AsyncConnection[Any], count: int) -> list[int]:
    """So many places in lanes, in order, for a set that is sent in several calls."""
    with translate_errors():
        rows = await fetch(conn, "select command_bus.next_lane_places(%s)", (count,))
    return [place for (place,) in rows]


async def set_lane_group(
    conn: AsyncConnection[Any], domain: str, group: str, settings: dict[str, Any], operator: str
) -> LaneSettings:
    """Change those settings of a group that are given; returns what holds then."""
    query = (
        "select max_in_flight, weight, lane_limit, on_trouble"
        " from command_bus.set_lane_group(%s, %s, %s, %s)"
    )
    with translate_errors():
        [row] = await fetch(conn, query, (domain, group, Jsonb(settings), operator))
    most, weight, lane_limit, on_trouble = row
    return LaneSettings(
        max_in_flight=most, weight=weight, lane_limit=lane_limit, on_trouble=on_trouble
    )


async def reset_lane_group(conn: AsyncConnection[Any], domain: str, group: str) -> bool:
    """Take the settings of a group back; returns whether it had any of its own."""
    with translate_errors():
        [(done,)] = await fetch(
            conn, "select command_bus.reset_lane_group(%s, %s)", (domain, group)
        )
    return bool(done)


# Working


class _ClaimedRow(NamedTuple):
    """A row of a claim; one without a claim number tells of a message that was rejected.

    One without a message tells how many were left for later, as its attempt, and how many were
    parked, as its max_attempts.
    """

    command_id: UUID
    command_type: str
    data: str
    correlation_id: UUID | None
    reply_to: str | None
    batch_id: UUID | None
    created_at: datetime
    attempt: int
    max_attempts: int
    msg_id: int | None
    claim_no: int | None
    headers: str | None
    lane: str | None


class Claim(NamedTuple):
    """What a claim found."""

    commands: list[ClaimedCommand]
    rejected: list[RejectedMessage]
    """Messages that no command explains; they are in the archive."""
    left: int
    """How many messages come again soon, since somebody has locked what they need."""
    parked: int = 0
    """How many commands were put aside for workers that know their types."""


_CLAIMED = ", ".join(_ClaimedRow._fields)


async def claim_commands(
    conn: Connection, domain: str, worker_id: int, limit: int, lease_seconds: int, max_attempts: int
) -> list[ClaimedCommand]:
    """Claim up to *limit* commands, each until *lease_seconds* from now."""
    claim = await claim_or_reject(conn, domain, worker_id, limit, lease_seconds, max_attempts)
    return claim.commands


async def claim_or_reject(
    conn: Connection,
    domain: str,
    worker_id: int,
    limit: int,
    lease_seconds: int,
    max_attempts: int,
    leave: Sequence[str] | None = None,
) -> Claim:
    """The same, and what became of the other messages; commands of types *leave* are parked."""
    return await _claim(
        conn,
        f"select {_CLAIMED} from command_bus.claim_commands_v3"  # nosec B608
        "(%s, %s, %s::integer, %s::integer, %s::integer, %s::text[])",
        (domain, worker_id, limit, lease_seconds, max_attempts, leave),
        domain,
    )


async def claim_parked(
    conn: Connection,
    domain: str,
    worker_id: int,
    limit: int,
    lease_seconds: int,
    max_attempts: int,
    types: Sequence[str],
) -> list[ClaimedCommand]:
    """Claim up to *limit* commands of *types* that other workers have put aside."""
    claim = await _claim(
        conn,
        f"select {_CLAIMED} from command_bus.claim_parked"  # nosec B608
        "(%s, %s, %s::integer, %s::integer, %s::integer, %s::text[])",
        (domain, worker_id, limit, lease_seconds, max_attempts, list(types)),
        domain,
    )
    return claim.commands


async def claim_suspect(
    conn: Connection,
    domain: str,
    worker_id: int,
    lease_seconds: int,
    max_attempts: int,
    leave: Sequence[str] | None = None,
) -> list[ClaimedCommand]:
    """Claim one command that may have killed its worker, if there is any of another type."""
    claim = await _claim(
        conn,
        f"select {_CLAIMED} from command_bus.claim_suspect_v2"  # nosec B608
        "(%s, %s, %s::integer, %s::integer, %s::text[])",
        (domain, worker_id, lease_seconds, max_attempts, leave),
        domain,
    )
    return claim.commands


async def park_unhandled(
    conn: Connection, domain: str, worker_id: int, tokens: Iterable[Token]
) -> int:
    """Put claimed commands aside, with no attempt spent, for a worker that has a handler.

    Returns how many the worker still held.
    """
    with translate_errors():
        [(count,)] = await fetch(
            conn,
            "select command_bus.park_unhandled(%s, %s, %s)",
            (domain, worker_id, _tokens_json(tokens)),
        )
    return int(count)


async def expire_parked(conn: Connection, domain: str, seconds: float) -> int:
    """Move what no running worker has had a handler for so long to the TSQ; returns how many."""
    with translate_errors():
        [(count,)] = await fetch(
            conn, "select command_bus.expire_parked(%s, %s)", (domain, float(seconds))
        )
    return int(count)


async def _claim(conn: Connection, query: str, params: tuple[Any, ...], domain: str) -> Claim:
    _refuse_unreadable(conn)
    with translate_errors():
        rows = await fetch(conn, query, params)
    commands, rejected, left, parked = [], [], 0, 0
    for row in map(_ClaimedRow._make, rows):
        if row.msg_id is None:
            left += row.attempt
            parked += row.max_attempts or 0
        elif row.claim_no is None:
            rejected.append(RejectedMessage(row.msg_id, row.command_id, reason=row.data))
        else:
            commands.append(_claimed_command(domain, row, row.msg_id, row.claim_no))
    return Claim(commands, rejected, left, parked)


def _refuse_unreadable(conn: Connection) -> None:
    """Raise UnsuitableConnectionError where a claim could be made, but its answer not be read."""
    session = conn.info.parameter_status
    style, encoding = session("DateStyle"), session("client_encoding")
    if style and not style.startswith("ISO"):
        raise UnsuitableConnectionError(f"DateStyle is {style}, and has to be ISO")
    # In another one there are texts that it cannot hold, unless the database has that, too.
    if encoding != "UTF8" and (encoding == "SQL_ASCII" or encoding != session("server_encoding")):
        raise UnsuitableConnectionError(f"client_encoding is {encoding}, and has to be UTF8")


def _claimed_command(domain: str, row: _ClaimedRow, msg_id: int, claim_no: int) -> ClaimedCommand:
    """Read one claimed row; data that cannot be decoded spoils this command only."""
    undecodable, headers = None, {}
    try:
        data = decode_json(row.data)
        if row.headers is not None:
            headers = decode_json(row.headers)
    except (ValueError, RecursionError) as exc:
        data, undecodable = None, f"{type(exc).__name__}: {exc}"
    command = Command(
        domain=domain,
        command_id=row.command_id,
        command_type=row.command_type,
        data=data,
        correlation_id=row.correlation_id,
        reply_to=row.reply_to,
        batch_id=row.batch_id,
        created_at=row.created_at,
        headers=headers,
        lane=row.lane,
    )
    return ClaimedCommand(
        command=command,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        msg_id=msg_id,
        claim_no=claim_no,
        undecodable=undecodable,
    )


class RejectedMessage(NamedTuple):
    """A message that a claim archived and recorded, since no command explains it."""

    msg_id: int
    command_id: UUID | None
    reason: str


class LookAhead(NamedTuple):
    """What waits for a worker beside the messages that are due."""

    due: float | None
    """In how many seconds something is due; None: nothing is."""
    suspects: bool
    """Whether suspects wait."""
    parked_types: list[str]
    """Of which types commands wait for a worker that knows them."""
    is_paused: bool
    """Whether the whole domain is paused."""
    paused_types: list[str] | None
    """Which types are paused; None: none."""
    cancel_requests: bool
    """Whether an operator asks to cancel what runs, on whichever worker."""


async def look_ahead(
    conn: Connection, domain: str, *, messages: bool = False, leave: Sequence[str] | None = None
) -> LookAhead:
    """What waits, but for suspects of the types *leave*.

    Due is the next waiting command and, with *messages*, the next message that becomes visible; in
    0 seconds or less where one that is visible waits.
    """
    cur = await conn.execute(
        "select next_due_seconds, suspects, parked_types, is_paused, paused_types,"
        " cancel_requests from command_bus.look_ahead_v3(%s, %s, %s::text[])",
        (domain, messages, leave),
    )
    [row] = await cur.fetchall()  # the function returns exactly one row
    return LookAhead(*row)


async def settle_commands(
    conn: Connection, domain: str, worker_id: int, completed: str, failed: str
) -> list[Settlement]:
    """Record outcomes, given as JSON text; returns those that did not simply complete."""
    query = f"select {_SETTLED} from command_bus.settle_commands_v2(%s, %s, %s::jsonb, %s::jsonb)"  # nosec B608
    return await _settle(conn, query, (domain, worker_id, completed, failed))


async def settle_commands_apart(
    conn: Connection, domain: str, worker_id: int, completed: str, failed: str
) -> list[Settlement]:
    """The same after it met a lock: what does not need what is locked is recorded."""
    query = (
        f"select {_SETTLED} from command_bus.settle_commands_apart(%s, %s, %s::jsonb, %s::jsonb)"  # nosec B608
    )
    return await _settle(conn, query, (domain, worker_id, completed, failed))


async def settle_and_hand_off(
    conn: Connection, domain: str, worker_id: int, handed: str, *, apart: bool
) -> list[Settlement]:
    """Record successes that have follow-ups, and these with them; returns as settle_commands."""
    query = f"select {_SETTLED} from command_bus.settle_commands_v3(%s, %s, %s::jsonb, %s)"  # nosec B608
    return await _settle(conn, query, (domain, worker_id, handed, apart))


async def settle_in_transaction(
    conn: Connection, domain: str, worker_id: int, handed: str
) -> list[Settlement]:
    """The same inside a transaction, for which a refused follow-up is an error."""
    query = f"select {_SETTLED} from command_bus.settle_and_hand_off(%s, %s, %s::jsonb, false)"  # nosec B608
    return await _settle(conn, query, (domain, worker_id, handed))


_SETTLED = "command_id, claim_no, verdict, status"


async def _settle(conn: Connection, query: str, params: tuple[Any, ...]) -> list[Settlement]:
    with translate_errors():
        return [
            Settlement(
                command_id, claim_no, Verdict(verdict), CommandStatus(status) if status else None
            )
            for command_id, claim_no, verdict, status in await fetch(conn, query, params)
        ]


async def publish_events(conn: AsyncConnection[Any], events: str) -> None:
    """Write *events*, a JSON array, into the outbox, inside the caller's transaction."""
    with translate_errors():
        await fetch(conn, "select command_bus.publish_events(%s::jsonb)", (events,))


async def delete_events(conn: Connection, positions: list[int]) -> int:
    """Delete events from the outbox; returns how many were there."""
    with translate_errors():
        [(count,)] = await fetch(conn, "select command_bus.delete_events(%s)", (positions,))
    return int(count)


class Token(NamedTuple):
    """What names an attempt to the database."""

    command_id: UUID
    msg_id: int
    claim_no: int


def tokens_of(claimed: Iterable[ClaimedCommand]) -> list[Token]:
    """The tokens of attempts."""
    return [Token(c.command.command_id, c.msg_id, c.claim_no) for c in claimed]


def _tokens_json(tokens: Iterable[Token]) -> Jsonb:
    return Jsonb([{**token._asdict(), "command_id": str(token.command_id)} for token in tokens])


async def renew_leases(
    conn: Connection,
    domain: str,
    worker_id: int,
    tokens: Iterable[Token],
    lease_seconds: int,
) -> set[tuple[UUID, int]]:
    """Make leases end *lease_seconds* from now; returns (command_id, claim_no) of those held."""
    with translate_errors():
        cur = await conn.execute(
            "select command_id, claim_no from command_bus.renew_leases(%s, %s, %s, %s::integer)",
            (domain, worker_id, _tokens_json(tokens), lease_seconds),
        )
        return {(command_id, claim_no) for command_id, claim_no in await cur.fetchall()}


async def end_leases(conn: Connection, domain: str, worker_id: int, tokens: Iterable[Token]) -> int:
    """Make leases end now, by the word of a living worker: the next attempts may begin.

    Returns how many; left out are those that somebody has locked, or has begun again.
    """
    with translate_errors():
        cur = await conn.execute(
            "select command_bus.end_leases(%s, %s, %s)",
            (domain, worker_id, _tokens_json(tokens)),
        )
        row = await cur.fetchone()
        return int(row[0]) if row else 0


async def release_commands(
    conn: Connection, domain: str, worker_id: int, tokens: Iterable[Token]
) -> int:
    """Give back what a worker claimed and never started; returns how many it still held."""
    with translate_errors():
        cur = await conn.execute(
            "select command_bus.release_commands(%s, %s, %s)",
            (domain, worker_id, _tokens_json(tokens)),
        )
        row = await cur.fetchone()
        return int(row[0]) if row else 0


async def claimed_by_worker(conn: Connection, domain: str, worker_id: int) -> list[Token]:
    """Everything that counts as this worker's, whether it has heard of it or not."""
    with translate_errors():
        cur = await conn.execute(
            "select command_id, msg_id, claim_no from command_bus.claimed_by_worker(%s, %s)",
            (domain, worker_id),
        )
        return [Token(*row) for row in await cur.fetchall()]


async def end_sessions(conn: Connection, sessions: Collection[int]) -> set[int]:
    """Let the server end *sessions* (process ids), as soon as they can; returns those still there.

    Only sessions like this one: of the same login, database and application name.
    """
    if not sessions:
        return set()
    cur = await conn.execute(
        """
        with session as materialized (
            select pid, usesysid
            from pg_stat_activity
            where pid = any(%s) and pid <> pg_backend_pid() and datname = current_database()
                and usename = session_user
                and application_name = current_setting('application_name')
        )
        select pid, case when pg_has_role(usesysid, 'usage') then pg_terminate_backend(pid) end
        from session
        """,
        (list(sessions),),
    )
    return {pid for pid, _ in await cur.fetchall()}


async def register_worker(conn: Connection, worker: dict[str, Any]) -> int:
    """Register a worker process; returns its id."""
    with translate_errors():
        cur = await conn.execute("select command_bus.register_worker(%s)", (Jsonb(worker),))
        row = await cur.fetchone()
        assert row is not None  # the function returns exactly one row
        return int(row[0])


async def heartbeat(
    conn: Connection,
    worker_id: int,
    *,
    running: list[dict[str, Any]],
    running_count: int,
    rate: float,
    concurrency: int,
    settings: dict[str, Any],
) -> bool | None:
    """Record that the worker lives; True: it shall stop, None: it is not known any more."""
    cur = await conn.execute(
        "select * from command_bus.heartbeat(%s, %s, %s, %s, %s, %s)",
        (worker_id, Jsonb(running), running_count, rate, concurrency, Jsonb(settings)),
    )
    row = await cur.fetchone()
    return None if row is None else bool(row[0])


async def set_command_types(conn: Connection, worker_id: int, types: Sequence[str]) -> None:
    """Record which types the worker has handlers for."""
    await conn.execute("select command_bus.set_command_types(%s, %s::text[])", (worker_id, types))


async def worker_stopped(conn: Connection, worker_id: int) -> None:
    """Record that the worker has stopped."""
    await conn.execute("select command_bus.worker_stopped(%s)", (worker_id,))


async def record_replacement(conn: Connection, worker_id: int, replaced_id: int, how: str) -> None:
    """Record that a worker was started in place of another, whose process has ended."""
    await conn.execute(
        "select command_bus.record_replacement(%s, %s, %s)", (worker_id, replaced_id, how)
    )


async def request_stop(conn: Connection, worker_id: int | None, by: str) -> int:
    """Ask one worker (None: every one) to stop; returns how many were asked."""
    cur = await conn.execute("select command_bus.request_stop(%s, %s)", (worker_id, by))
    row = await cur.fetchone()
    return int(row[0]) if row else 0


async def fold_deltas(conn: Connection) -> int:
    """Fold counters; returns how many deltas there were."""
    cur = await conn.execute("select command_bus.fold_deltas()")
    row = await cur.fetchone()
    return int(row[0]) if row else 0


async def listen(conn: Connection, domain: str) -> None:
    """Listen for commands of a domain on this connection."""
    await conn.execute(sql.SQL("listen {}").format(sql.Identifier(f"command_bus_{domain}")))


# Cancelling


async def attempts_to_cancel(conn: Connection, domain: str, worker_id: int) -> set[tuple[int, int]]:
    """(msg_id, claim_no) of the worker's attempts that shall be cancelled."""
    with translate_errors():
        rows = await fetch(
            conn,
            "select msg_id, claim_no from command_bus.attempts_to_cancel(%s, %s)",
            (domain, worker_id),
        )
    return {(msg_id, claim_no) for msg_id, claim_no in rows}


async def settle_cancelled(
    conn: Connection, domain: str, worker_id: int, tokens: Iterable[Token]
) -> int:
    """Record that attempts were cancelled as asked; returns how many the worker still held."""
    with translate_errors():
        [(count,)] = await fetch(
            conn,
            "select command_bus.settle_cancelled(%s, %s, %s)",
            (domain, worker_id, _tokens_json(tokens)),
        )
    return int(count)


async def carry_out_cancels(conn: Connection, domain: str) -> None:
    """Cancel what was asked for and runs no more."""
    with translate_errors():
        await fetch(conn, "select command_bus.carry_out_cancels(%s)", (domain,))


# Pauses


async def pause(
    conn: AsyncConnection[Any],
    domain: str,
    command_type: str | None,
    reason: str,
    operator: str,
    seconds: float | None,
) -> int:
    """Pause a domain, or one type of it; returns the pause's id."""
    with translate_errors():
        [(pause_id,)] = await fetch(
            conn,
            "select command_bus.pause(%s, %s, %s, %s, %s::float8)",
            (domain, command_type, reason, operator, seconds),
        )
    return int(pause_id)


async def resume(conn: AsyncConnection[Any], pause_id: int, operator: str) -> bool:
    """End a pause; False: there is none of this id in force."""
    with translate_errors():
        [(ended,)] = await fetch(conn, "select command_bus.resume(%s, %s)", (pause_id, operator))
    return bool(ended)


# Operators


async def operate(
    conn: AsyncConnection[Any], function: str, domain: str, ids: object, operator: str, *args: Any
) -> list[OperatorResult]:
    """Call the operator function of that name in schema command_bus.

    Returns an answer for each command. Raises UnknownDomainError, which aborts the transaction.
    """
    values = (domain, ids, operator, *args)
    query = f"select * from command_bus.{function}({', '.join(['%s'] * len(values))})"  # nosec B608
    with translate_errors():
        rows = await fetch(conn, query, values)
    return [
        OperatorResult(
            command_id, OperatorVerdict(verdict), CommandStatus(status) if status else None
        )
        for command_id, verdict, status in rows
    ]


async def server_time(conn: Connection) -> datetime:
    """What the server's clock says, in UTC: in a zone with summer time, sums would be wrong."""
    [(now,)] = await fetch(conn, "select clock_timestamp()")
    return cast(datetime, now).astimezone(UTC)


def dumps(value: Any) -> str:
    """JSON text as compact as the server needs it."""
    return _encode(value)
