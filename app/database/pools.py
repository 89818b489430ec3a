"""How the processes of the application connect: with a bound on every wait for the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from commandbus.pools import Pool as Pool
from commandbus.pools import create_pool

CONNECT_SECONDS = 5
CLOSE_SECONDS = 1.0
STATEMENT_SECONDS = 10
"""The server ends a statement after this time."""
LOCK_SECONDS = 5
# In a zone with summer time, differences between the times that come back would be wrong. Names are
# those in public, whatever a role's own path says. Rows that a policy would hide are no empty list.
_FIXED = "-c timezone=UTC -c search_path=public -c row_security=off"


def new_pool(
    url: str,
    *,
    application_name: str,
    name: str,
    answer_timeout: int,
    max_size: int,
    timeout: float,
) -> Pool:
    """A pool for *url*, not open; a call waits at most *timeout* seconds for a connection of it."""
    return create_pool(
        url,
        kwargs={"autocommit": True, **connection_options(url, application_name, answer_timeout)},
        min_size=1,
        max_size=max_size,
        timeout=timeout,
        name=name,
    )


@asynccontextmanager
async def opened(pool: Pool) -> AsyncIterator[None]:
    """*pool* is open meanwhile; what it still waits for at the end is not waited for long."""
    await pool.open()
    try:
        yield
    finally:
        await pool.close(CLOSE_SECONDS)


def connection_options(url: str, application_name: str, answer_timeout: int) -> dict[str, Any]:
    """Parameters that bound every wait; what the URI says of the same wins.

    The server itself ends what takes long within *answer_timeout* seconds where it can.
    """
    given = conninfo_to_dict(url)
    limits = (
        f"-c statement_timeout={min(STATEMENT_SECONDS, answer_timeout)}s"
        f" -c lock_timeout={min(LOCK_SECONDS, answer_timeout)}s"
        " -c idle_in_transaction_session_timeout=60s"
        # Compiling a statement that is over in milliseconds takes hundreds of them.
        " -c jit=off"
    )
    options = network_options(url, application_name, answer_timeout)
    return {**options, "options": f"{limits} {given.get('options', '')} {_FIXED}"}


def network_options(url: str, application_name: str, answer_timeout: int) -> dict[str, Any]:
    """The part of them that does not limit how long the server works on a statement."""
    given = conninfo_to_dict(url)
    options: dict[str, Any] = {
        "connect_timeout": min(CONNECT_SECONDS, answer_timeout),
        "application_name": application_name,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": answer_timeout * 1000,
    }
    return {name: value for name, value in options.items() if name not in given}
