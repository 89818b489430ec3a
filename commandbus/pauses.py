"""Pausing and resuming a domain, or one command type of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from commandbus import queries, store
from commandbus.checks import MAX_BIGINT, MAX_SECONDS, check_positive, check_whole
from commandbus.deadlines import ANSWER_SECONDS
from commandbus.models import Pause
from commandbus.names import (
    MAX_OPERATOR,
    MAX_REASON,
    MAX_TYPE,
    check_domain,
    check_storable,
    check_text,
)
from commandbus.texts import shown

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

MAX_LISTED = 1_000


class Pauses:
    """While a domain or a command type is paused, nothing of it starts.

    What runs goes on. No attempt is spent. Workers hear of it at once, and within a second where
    notifications do not pass. After the end, everything goes on by itself.
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

    async def pause(
        self,
        domain: str,
        command_type: str | None = None,
        *,
        reason: str,
        operator: str,
        seconds: float | None = None,
    ) -> Pause:
        """Pause a domain, or one command type of it, for *seconds* or until it is resumed.

        A pause of the same that is in force is replaced. Raises UnknownDomainError,
        InvalidDomainError, InvalidCommandError for texts that are empty or too long, and ValueError
        for seconds that are not above 0 and at most ten years.
        """
        check_domain(domain)
        check_text("reason", reason, 1, MAX_REASON)
        check_text("operator", operator, 1, MAX_OPERATOR)
        if command_type is not None:
            check_text("command_type", command_type, 1, MAX_TYPE)
        if seconds is not None:
            check_positive("seconds", seconds, MAX_SECONDS)

        async def call(conn: store.Connection) -> Pause:
            pause_id = await store.pause(conn, domain, command_type, reason, operator, seconds)
            [made] = await queries.list_pauses(conn, pause_id=pause_id)
            return made

        return await store.repeated(
            self._pool, call, within=self._answer_timeout, where_broken=False
        )

    async def resume(self, pause_id: int, *, operator: str) -> bool:
        """End a pause; False: there is none of this id in force."""
        check_whole("pause_id", pause_id, 1, MAX_BIGINT)
        check_text("operator", operator, 1, MAX_OPERATOR)
        return await store.repeated(
            self._pool,
            lambda conn: store.resume(conn, pause_id, operator),
            within=self._answer_timeout,
            where_broken=False,
        )

    async def list(
        self, domain: str | None = None, *, ended: bool = False, limit: int = MAX_LISTED
    ) -> Sequence[Pause]:
        """The pauses in force, the latest first; with *ended* also those that are over."""
        check_whole("limit", limit, 1, MAX_LISTED)
        if domain is not None:
            check_storable("domain", domain)
        if not isinstance(ended, bool):
            raise TypeError(f"ended is True or False, not {shown(ended)}")
        return await store.repeated(
            self._pool,
            lambda conn: queries.list_pauses(conn, domain=domain, ended=ended, limit=limit),
            within=self._answer_timeout,
        )
