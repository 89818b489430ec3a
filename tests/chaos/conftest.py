"""What chaos tests use. `make chaos` (CHAOS=long) runs them in their long form."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.database.opening import prepare
from tests.chaos.faults import OwnServer, own_server
from tests.chaos.history import History
from tests.facts import Pool

LONG = os.environ.get("CHAOS") == "long"
SEEDS = int(os.environ.get("CHAOS_SEEDS", "20")) if LONG else 1
FIRST_SEED = int(os.environ.get("CHAOS_FIRST_SEED", "1"))
PART, PARTS = map(int, os.environ.get("CHAOS_PART", "1/1").split("/"))
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder are marked, and long forms may take long."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.chaos)
            if LONG:
                item.add_marker(pytest.mark.timeout(10 * 3600))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument *seed* runs once, or in its long form with many seeds."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))


Item = TypeVar("Item")


def part_of(items: Iterable[Item]) -> Iterator[Item]:
    """Those of *items* that CHAOS_PART=2/4 names: every fourth, beginning with the second."""
    return islice(items, PART - 1, None, PARTS)


def scaled(short: int, long: int) -> int:
    """How much of something: in the short form, in the long one."""
    return long if LONG else short


@pytest.fixture
def history(tmp_path: Path) -> History:
    """The record of this test, outside the database."""
    return History(tmp_path / "history.jsonl")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the programs of this test write their output."""
    return tmp_path / "programs.log"


@pytest.fixture
def conn(database_url: str) -> Iterator[psycopg.Connection[TupleRow]]:
    """A connection to the test's database, to look at it without an event loop."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def server() -> Iterator[OwnServer]:
    """A server that this test may kill."""
    with own_server() as own:
        yield own


@pytest.fixture
def own_url(server: OwnServer) -> str:
    """A migrated database on it."""
    url = server.url("chaos")
    prepare(url, on_step=lambda _: None)
    return url


@pytest.fixture
async def own_pool(own_url: str) -> AsyncIterator[Pool]:
    """The sender's pool."""
    async with AsyncConnectionPool(
        own_url, connection_class=AsyncConnection[TupleRow], min_size=1, max_size=4, open=False
    ) as opened:
        yield opened
