"""What the schema promises: indexes that stay cheap, plans that use them, enums that agree."""

from __future__ import annotations

import os
import re

import psycopg
import pytest

from app.database.urls import with_database
from commandbus import AuditEventType, CommandStatus
from commandbus.migrating import migrations_folder
from tests.facts import Pool, rows, value

FILLED = 5_000
REGISTER = """
    select command_bus.register_worker('{"domain": "test", "host": "h", "pid": 1,
        "version": "0", "concurrency": 1, "heartbeat_seconds": 1}')"""
SEND = """
    select command_bus.send_commands('test', jsonb_agg(jsonb_build_object(
        'command_id', gen_random_uuid(), 'command_type', 'DoIt', 'data', '{}'::jsonb)))
    from generate_series(1, %(count)s)"""


async def test_no_index_of_the_command_table_touches_what_changes(pool: Pool):
    """An index on a column that an update changes costs every update its heap-only way."""
    changing = {
        "status", "attempts", "claim_no", "settled_claim", "msg_id", "worker_id", "updated_at",
        "started_at", "finished_at", "lease_until", "result", "last_error_type", "claimed_budget",
        "last_error_code", "last_error_message",
    }  # fmt: skip
    definitions = await rows(
        pool, "select indexdef from pg_indexes where tablename = 'command_bus_command'"
    )

    assert len(definitions) >= 2
    for (definition,) in definitions:
        assert not changing & set(re.findall(r"\w+", definition.split(" USING ")[1])), definition


@pytest.mark.parametrize(
    ("kind", "name"), [(CommandStatus, "command_status"), (AuditEventType, "audit_event")]
)
async def test_the_database_knows_the_same_values_as_python(pool, kind, name):
    found = await value(pool, f"select enum_range(null::command_bus.{name})::text[]")

    assert found == [each.value for each in kind]


async def test_every_function_looks_names_up_in_a_fixed_path_first(pool):
    """Whoever calls, with whatever search_path, gets our tables; temporary ones come last."""
    open_ones = await rows(
        pool,
        """
        select p.proname from pg_proc as p
        join pg_namespace as n on n.oid = p.pronamespace and n.nspname = 'command_bus'
        where p.prosrc ~ 'command_bus_|pgmq\\.'
            and p.proname <> 'wake_workers'  -- it names a channel, no table
            and not exists (
                select from unnest(p.proconfig) as setting
                where setting like 'search_path=public, pg_temp%%'
            )
        """,
    )

    assert open_ones == []


async def test_no_function_takes_rows_that_a_policy_hides_for_rows_that_are_not_there(pool):
    open_ones = await rows(
        pool,
        """
        select p.proname from pg_proc as p
        where p.pronamespace in ('command_bus'::regnamespace, 'public'::regnamespace)
            and exists (select from unnest(p.proconfig) as each where each ^@ 'search_path=')
            and 'row_security=off' <> all (p.proconfig)
        """,
    )

    assert open_ones == []


@pytest.fixture(scope="module")
def filled_database_url(server_url: str, template_database: str):
    """A database with thousands of finished commands and some that wait to be claimed."""
    name = f"{template_database}_filled_{os.getpid()}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'create database "{name}" template "{template_database}"')
    url = with_database(server_url, name)
    with psycopg.connect(url, autocommit=True) as conn:
        worker = conn.execute(REGISTER).fetchone()
        assert worker is not None
        for _ in range(FILLED // 1000):
            conn.execute(SEND, {"count": 1000})
            conn.execute(
                """select command_bus.settle_commands('test', %(w)s, jsonb_agg(jsonb_build_object(
                    'command_id', c.command_id, 'msg_id', c.msg_id, 'claim_no', c.claim_no,
                    'run_us', 1, 'result', null)), '[]')
                from command_bus.claim_commands('test', %(w)s, 1000, 30, 3) as c""",
                {"w": worker[0]},
            )
        conn.execute(SEND, {"count": 300})
        conn.execute("analyze")
    yield url
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(f'drop database "{name}" with (force)')


WORK = {
    "claim": "select * from command_bus.claim_commands('test', 1, 10, 30, 3)",
    "settle": """
        select command_bus.settle_commands('test', 1, jsonb_agg(jsonb_build_object(
            'command_id', c.command_id, 'msg_id', c.msg_id, 'claim_no', c.claim_no, 'run_us', 1,
            'result', null)), '[]')
        from command_bus.claim_commands('test', 1, 10, 30, 3) as c""",
    "fail": """
        select command_bus.settle_commands('test', 1, '[]', jsonb_agg(jsonb_build_object(
            'command_id', c.command_id, 'msg_id', c.msg_id, 'claim_no', c.claim_no, 'run_us', 1,
            'kind', 'permanent', 'error_type', 'PERMANENT', 'error_code', 'E', 'max_attempts', 3,
            'error_message', 'm', 'retry_delay_ms', 0)))
        from command_bus.claim_commands('test', 1, 10, 30, 3) as c""",
    "retry": """
        select command_bus.settle_commands('test', 1, '[]', jsonb_agg(jsonb_build_object(
            'command_id', c.command_id, 'msg_id', c.msg_id, 'claim_no', c.claim_no, 'run_us', 1,
            'kind', 'transient', 'error_type', 'TRANSIENT', 'error_code', 'E', 'max_attempts', 3,
            'error_message', 'm', 'retry_delay_ms', 0)))
        from command_bus.claim_commands('test', 1, 10, 30, 3) as c;
        select * from command_bus.claim_commands('test', 1, 10, 30, 3)""",
    "renew": """
        select command_bus.renew_leases('test', 1, jsonb_agg(jsonb_build_object(
            'command_id', c.command_id, 'msg_id', c.msg_id, 'claim_no', c.claim_no)), 60)
        from command_bus.claim_commands('test', 1, 10, 30, 3) as c""",
    "release": """
        select command_bus.release_commands('test', 1, jsonb_agg(jsonb_build_object(
            'command_id', c.command_id, 'msg_id', c.msg_id, 'claim_no', c.claim_no)))
        from command_bus.claim_commands('test', 1, 10, 30, 3) as c""",
    "send again": """
        select command_bus.send_commands('test', jsonb_agg(jsonb_build_object(
            'command_id', command_id, 'command_type', command_type, 'data', data)))
        from (select * from command_bus_command order by created_at desc limit 20) as known""",
}


@pytest.mark.parametrize("work", WORK)
def test_no_step_of_the_work_reads_the_whole_command_table(filled_database_url, work):
    """The row counts of a sequential scan would show in the statistics of this session."""
    with psycopg.connect(filled_database_url) as conn:
        query = (
            "select seq_scan, seq_tup_read, idx_scan from pg_stat_xact_user_tables"
            " where relname in ('command_bus_command', 'command_bus_audit') order by relname desc"
        )
        before = conn.execute(query.encode()).fetchall()
        conn.execute(WORK[work].encode())
        after = conn.execute(query.encode()).fetchall()
        conn.rollback()

    commands, audit = (
        [now - then for now, then in zip(one, other, strict=True)]
        for one, other in zip(after, before, strict=True)
    )
    assert commands[0] == 0, f"{commands[1]} rows read by sequential scans"
    assert commands[2] > 0, "an index was used"
    assert audit[0] == 0


@pytest.mark.parametrize("work", WORK)
def test_a_plan_made_while_there_was_hardly_anything_serves_when_there_is_much(database_url, work):
    """Plans last as long as their session, and the first are made without any statistics."""
    fetched = (
        "select idx_tup_fetch + seq_tup_read from pg_stat_xact_user_tables"
        " where relname = 'command_bus_command'"
    )
    with psycopg.connect(database_url) as conn:
        conn.execute(REGISTER)
        conn.execute(SEND, {"count": 10})
        conn.execute(WORK[work].encode())
        conn.commit()
        conn.execute(SEND, {"count": 3000})
        conn.commit()
        conn.execute(WORK[work].encode())
        row = conn.execute(fetched).fetchone()

    assert row is not None
    assert 0 < row[0] < 500


async def test_migrating_again_gives_the_same_functions(pool, database_url):
    """Each R__ file can be applied on top of itself, as a change of one of them does."""

    async def functions():
        return await rows(
            pool,
            "select p.oid::regprocedure::text, md5(pg_get_functiondef(p.oid)) from pg_proc as p"
            " join pg_namespace as n on n.oid = p.pronamespace where n.nspname = 'command_bus'"
            " order by 1",
        )

    before = await functions()
    with psycopg.connect(database_url) as conn:
        for path in sorted(migrations_folder().glob("R__*.sql")):
            conn.execute(path.read_bytes())
    assert await functions() == before
    assert len(before) > 20
