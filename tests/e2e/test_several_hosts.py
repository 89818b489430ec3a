"""Workers on other hosts do the same work, over TCP with password and TLS."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.database.opening import prepare
from tests.e2e import hosts
from tests.e2e.distribution import (
    assert_fair,
    completed,
    send_test_commands,
    shares,
    workers_alive,
)
from tests.e2e.hosts import Host, TlsServer
from tests.e2e.served import served
from tests.facts import Pool, rows, value
from tests.programs import program
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(hosts.needs() is not None, reason=str(hosts.needs()))


@pytest.fixture
def two_hosts() -> Iterator[tuple[Host, Host]]:
    with hosts.host("host-a") as first, hosts.host("host-b") as second:
        yield first, second


@pytest.fixture
def server(two_hosts: tuple[Host, Host]) -> Iterator[TlsServer]:
    """A server that both hosts reach, each at the address of its own cable."""
    folder = Path(tempfile.mkdtemp(prefix="commandbus-tls-"))  # where the server's user may go
    try:
        with hosts.tls_server(folder, [each.outside for each in two_hosts]) as running:
            prepare(running.url(two_hosts[0].outside), on_step=lambda _: None)
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.fixture
async def bus_pool(server: TlsServer, two_hosts: tuple[Host, Host]) -> AsyncIterator[Pool]:
    """Connections from this machine, which is a third host."""
    async with AsyncConnectionPool(
        server.url(two_hosts[0].outside),
        connection_class=AsyncConnection[TupleRow],
        max_size=4,
        open=False,
    ) as opened:
        yield opened


async def test_workers_on_two_other_hosts_share_the_work(server, two_hosts, bus_pool):
    async with AsyncExitStack() as running:
        processes = [
            await running.enter_async_context(
                program(
                    *("-m", "app.worker", "--processes", "2"),
                    within=each.within,
                    DATABASE_URL=server.url(each.outside),
                )
            )
            for each in two_hosts
        ]
        workers = await workers_alive(bus_pool, 4)
        await send_test_commands(bus_pool, 2_000, execution_time_ms=5)
        await completed(bus_pool, 2_000)

        assert await rows(
            bus_pool, "select host, count(*) from command_bus_worker group by host order by host"
        ) == [("host-a", 2), ("host-b", 2)]
        connections = await rows(
            bus_pool,
            "select host(client_addr), bool_and(ssl) from pg_stat_activity"
            " join pg_stat_ssl using (pid)"
            " where application_name = 'commandbus worker test' group by 1",
        )
        assert dict(connections) == {each.address: True for each in two_hosts}
        async with served(server.url(two_hosts[0].outside)) as web:
            shown = (await web.get("/api/v1/workers"))["workers"]
            assert {each["host"] for each in shown} == {"host-a", "host-b"}
        for each in processes:
            each.process.terminate()
            assert await each.ends() == 0

    assert_fair(await shares(bus_pool), workers)
    assert await value(bus_pool, "select max(attempts) from command_bus_command") == 1
    assert await value(bus_pool, "select count(*) from command_bus.find_violations()") == 0


async def test_what_a_host_held_when_it_lost_its_network_is_done_by_another(
    server, two_hosts, bus_pool
):
    lost = two_hosts[0]
    async with AsyncExitStack() as running:
        for each in two_hosts:
            await running.enter_async_context(
                program(
                    *("-m", "app.worker", "--visibility-timeout", "2", "--concurrency", "3"),
                    within=each.within,
                    DATABASE_URL=server.url(each.outside),
                )
            )
        await workers_alive(bus_pool, 2)
        await send_test_commands(bus_pool, 10, execution_time_ms=1_000)
        held = (
            "select count(*) from command_bus_command join command_bus_worker using (worker_id)"
            " where host = 'host-a' and status = 'IN_PROGRESS'"
        )
        await eventually(lambda: value(bus_pool, held))
        lost.unplug()
        await completed(bus_pool, 10)

    took_over = await rows(
        bus_pool,
        "select host, count(*) from command_bus_audit join command_bus_worker using (worker_id)"
        " where event_type = 'COMPLETED' and attempt > 1 group by host",
    )
    assert [host for host, _ in took_over] == ["host-b"]
    assert sum((await shares(bus_pool)).values()) == 10
    assert await value(bus_pool, "select count(*) from command_bus.find_violations()") == 0


async def test_who_may_not_talk_to_the_server_is_told_why(server, two_hosts):
    reasons = {
        "password authentication failed": {"password": "guessed"},
        "no encryption": {"sslmode": "disable"},
        "certificate verify failed": {"sslrootcert": "system"},
    }
    for reason, changed in reasons.items():
        async with program(
            *("-m", "app.worker", "--database-wait", "0"),
            within=two_hosts[1].within,
            DATABASE_URL=server.url(two_hosts[1].outside, **changed),
        ) as refused:
            assert await refused.ends() == 1

        assert reason in refused.lines[-1]
        assert "guessed" not in refused.output
        assert server.password not in refused.output
