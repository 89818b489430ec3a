"""A server whose processes tests may stop, and ways to a database on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from app.database.opening import prepare
from tests.chaos.faults import OwnServer, own_server
from tests.chaos.freezing import pool_of
from tests.chaos.proxy import Proxy, proxied
from tests.facts import Pool


@pytest.fixture(scope="package")
def server() -> Iterator[OwnServer]:
    """A server whose processes the tests of this folder may stop."""
    with own_server() as own:
        prepare(own.url("template_chaos"), on_step=lambda _: None)
        yield own


@pytest.fixture
def url(server: OwnServer) -> str:
    """A migrated database on it, of the test's own."""
    name = f"chaos_{uuid4().hex[:8]}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
        conn.execute(
            sql.SQL("create database {} template template_chaos").format(sql.Identifier(name))
        )
    return server.url(name)


@pytest.fixture
async def own_pool(url: str) -> AsyncIterator[Pool]:
    """A pool of the test's, past everything that freezes."""
    async with pool_of(url) as opened:
        yield opened


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A proxy to the test's database."""
    async with proxied(url) as opened:
        yield opened
