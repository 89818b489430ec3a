"""The built-in runner does to a database what Flyway would, and refuses what Flyway refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import TupleRow, dict_row

from commandbus import MigrationError
from commandbus.migrating import connect, examine, migrate, migration_lock, validate
from commandbus.migrating.files import checksum
from commandbus.migrating.history import State

ONE = "create table one (x int);\n"
TWO = "create table two (x int);\n"
FUNCTION = """
create or replace function answer() returns int language plpgsql as $body$
begin
    -- A semicolon; a '%', a "${placeholder}" and $1 are only text.
    return 1;
end
$body$;
select answer();
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two migrations and a repeatable one."""
    (tmp_path / "V001__first_table.sql").write_text(ONE)
    (tmp_path / "V002__second_table.sql").write_text(TWO)
    (tmp_path / "R__answer.sql").write_text(FUNCTION)
    return tmp_path


@pytest.fixture
def conn(empty_database_url: str) -> Iterator[Connection[TupleRow]]:
    """A connection to a database without a history, which this test may migrate."""
    with connect(empty_database_url) as opened, migration_lock(opened):
        yield opened


def history(conn: Connection[TupleRow]) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute("select * from public.flyway_schema_history order by installed_rank")
        return cursor.fetchall()


def scripts(conn: Connection[TupleRow], folder: Path) -> list[str]:
    return [applied.script for applied in migrate(conn, folder)]


def test_migrations_are_applied_in_order_and_recorded_as_flyway_does(
    conn: Connection[TupleRow], folder: Path
) -> None:
    told: list[str] = []
    applied = migrate(conn, folder, on_applied=lambda done: told.append(done.script))

    assert told == [done.script for done in applied]
    assert told == ["V001__first_table.sql", "V002__second_table.sql", "R__answer.sql"]
    rows = history(conn)
    assert [row["installed_rank"] for row in rows] == [1, 2, 3]
    assert [row["version"] for row in rows] == ["001", "002", None]
    assert [row["description"] for row in rows] == ["first table", "second table", "answer"]
    assert {row["type"] for row in rows} == {"SQL"}
    assert rows[0]["checksum"] == checksum(ONE)
    assert rows[0]["installed_by"] == conn.info.user
    assert all(row["success"] and row["execution_time"] >= 0 for row in rows)
    assert conn.execute("select answer()").fetchone() == (1,)


def test_the_history_table_is_flyways(conn: Connection[TupleRow], folder: Path) -> None:
    migrate(conn, folder)

    columns = conn.execute(
        "select column_name, data_type, character_maximum_length, is_nullable, column_default"
        " from information_schema.columns where table_name = 'flyway_schema_history'"
        " order by ordinal_position"
    ).fetchall()
    assert columns == [
        ("installed_rank", "integer", None, "NO", None),
        ("version", "character varying", 50, "YES", None),
        ("description", "character varying", 200, "NO", None),
        ("type", "character varying", 20, "NO", None),
        ("script", "character varying", 1000, "NO", None),
        ("checksum", "integer", None, "YES", None),
        ("installed_by", "character varying", 100, "NO", None),
        ("installed_on", "timestamp without time zone", None, "NO", "now()"),
        ("execution_time", "integer", None, "NO", None),
        ("success", "boolean", None, "NO", None),
    ]
    indexes = conn.execute(
        "select indexname from pg_indexes where tablename = 'flyway_schema_history' order by 1"
    ).fetchall()
    assert indexes == [("flyway_schema_history_pk",), ("flyway_schema_history_s_idx",)]


def test_a_migrated_database_is_left_alone(conn: Connection[TupleRow], folder: Path) -> None:
    migrate(conn, folder)
    before = history(conn)

    assert scripts(conn, folder) == []
    validate(conn, folder)
    assert history(conn) == before


def test_only_what_is_new_is_applied(conn: Connection[TupleRow], folder: Path) -> None:
    migrate(conn, folder)
    (folder / "V003__third.sql").write_text("create table three (x int);")

    assert scripts(conn, folder) == ["V003__third.sql"]


def test_a_changed_repeatable_migration_is_applied_again(
    conn: Connection[TupleRow], folder: Path
) -> None:
    migrate(conn, folder)
    (folder / "R__answer.sql").write_text(FUNCTION.replace("return 1", "return 2"))

    with pytest.raises(MigrationError, match=r"Not applied yet: R__answer\.sql"):
        validate(conn, folder)
    assert scripts(conn, folder) == ["R__answer.sql"]
    assert conn.execute("select answer()").fetchone() == (2,)
    assert [row["installed_rank"] for row in history(conn)] == [1, 2, 3, 4]
    assert scripts(conn, folder) == []


def test_a_migration_with_other_line_ends_is_unchanged(
    conn: Connection[TupleRow], folder: Path
) -> None:
    migrate(conn, folder)
    (folder / "V001__first_table.sql").write_bytes(ONE.replace("\n", "\r\n").encode())

    assert scripts(conn, folder) == []


def test_what_a_migration_sets_does_not_reach_the_next(
    conn: Connection[TupleRow], tmp_path: Path
) -> None:
    (tmp_path / "V1__dump.sql").write_text("select set_config('search_path', '', false);")
    (tmp_path / "V2__table.sql").write_text("create table here (x int);")

    migrate(conn, tmp_path)

    assert conn.execute("select to_regclass('public.here') is not null").fetchone() == (True,)


def test_tables_are_made_in_public_also_where_the_role_has_a_schema_of_its_own(
    conn: Connection[TupleRow], folder: Path
) -> None:
    conn.execute("do $$ begin execute format('create schema %I', current_user); end $$")

    migrate(conn, folder)

    assert conn.execute("select to_regclass('public.one') is not null").fetchone() == (True,)


def test_a_failing_migration_leaves_nothing_and_says_where(
    conn: Connection[TupleRow], folder: Path
) -> None:
    (folder / "V003__broken.sql").write_text(
        "create table three (x int);\n\ninsert into nowhere;\n"
    )

    with pytest.raises(MigrationError, match=r"V003__broken\.sql, line 3 failed and was undone: "):
        migrate(conn, folder)

    assert [row["version"] for row in history(conn)] == ["001", "002"]
    assert conn.execute("select to_regclass('three')").fetchone() == (None,)
    (folder / "V003__broken.sql").write_text("create table three (x int);")
    assert scripts(conn, folder) == ["V003__broken.sql", "R__answer.sql"]


def change_applied_file(conn: Connection[TupleRow], folder: Path) -> None:
    (folder / "V001__first_table.sql").write_text(ONE + "-- more\n")


def remove_applied_file(conn: Connection[TupleRow], folder: Path) -> None:
    (folder / "V001__first_table.sql").unlink()


def remove_applied_repeatable(conn: Connection[TupleRow], folder: Path) -> None:
    (folder / "R__answer.sql").unlink()


def rename_applied_file(conn: Connection[TupleRow], folder: Path) -> None:
    (folder / "V001__first_table.sql").rename(folder / "V001__another_name.sql")


def add_below_the_highest(conn: Connection[TupleRow], folder: Path) -> None:
    (folder / "V001.5__late.sql").write_text("select 1;")


def record_a_failure(conn: Connection[TupleRow], folder: Path) -> None:
    conn.execute("update public.flyway_schema_history set success = false where version = '002'")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (change_applied_file, r"V001__first_table\.sql was changed after it was applied"),
        (remove_applied_file, r"V001__first_table\.sql is applied, but its file is missing"),
        (remove_applied_repeatable, r"R__answer\.sql is applied, but its file is missing"),
        (rename_applied_file, r"V001__first_table\.sql was renamed to V001__another_name\.sql"),
        (add_below_the_highest, r"V001\.5__late\.sql was added below version 002"),
        (record_a_failure, r"V002__second_table\.sql failed at an earlier attempt"),
    ],
)
def test_files_that_disagree_with_the_history_are_refused(
    conn: Connection[TupleRow],
    folder: Path,
    spoil: Callable[[Connection[TupleRow], Path], None],
    reason: str,
) -> None:
    migrate(conn, folder)
    spoil(conn, folder)
    (folder / "V009__pending.sql").write_text("create table nine (x int);")
    before = history(conn)

    with pytest.raises(MigrationError, match=reason):
        migrate(conn, folder)
    with pytest.raises(MigrationError, match=reason):
        validate(conn, folder)

    assert history(conn) == before
    assert conn.execute("select to_regclass('nine')").fetchone() == (None,)


def test_every_obstacle_to_migrating_is_named_together(
    conn: Connection[TupleRow], folder: Path
) -> None:
    migrate(conn, folder)
    change_applied_file(conn, folder)
    add_below_the_highest(conn, folder)

    with pytest.raises(MigrationError, match=r"was changed.*; .*was added below"):
        migrate(conn, folder)


def test_older_code_works_on_a_newer_database_and_puts_nothing_back(
    conn: Connection[TupleRow], folder: Path
) -> None:
    (folder / "V003__newer.sql").write_text("create table three (x int);")
    migrate(conn, folder)
    (folder / "V003__newer.sql").unlink()
    (folder / "R__answer.sql").write_text(FUNCTION.replace("return 1", "return 0"))

    assert scripts(conn, folder) == []
    states = {standing.version: standing.state for standing in examine(conn, folder).standings}
    assert states["003"] is State.FUTURE
    assert conn.execute("select answer()").fetchone() == (1,)


def test_flyways_own_kinds_of_rows_are_understood(conn: Connection[TupleRow], folder: Path) -> None:
    (folder / "V003__third.sql").write_text("create table three (x int);")
    migrate(conn, folder)
    conn.execute("delete from public.flyway_schema_history")
    conn.execute("drop table three")
    conn.execute(
        "insert into public.flyway_schema_history values"
        " (0, null, '<< Flyway Schema Creation >>', 'SCHEMA', '\"s\"', null, 'me', now(), 0, true),"
        " (1, '1', '<< Flyway Baseline >>', 'BASELINE', 'x', null, 'me', now(), 0, true),"
        " (2, '2', 'second table', 'SQL', 'V002__second_table.sql', %(two)s, 'me', now(), 0, true),"
        " (3, '3', 'third', 'SQL', 'V003__third.sql', 1, 'me', now(), 0, true),"
        " (4, '3', 'third', 'DELETE', 'V003__third.sql', 1, 'me', now(), 0, true)",
        {"two": checksum(TWO)},
    )

    states = [standing.state for standing in examine(conn, folder).standings]

    assert states == [State.BELOW_BASELINE, State.APPLIED, State.PENDING, State.PENDING]
    assert scripts(conn, folder) == ["V003__third.sql", "R__answer.sql"]


def test_two_at_once_apply_each_migration_once(empty_database_url: str, folder: Path) -> None:
    (folder / "V003__slow.sql").write_text("select pg_sleep(0.2); create table slow (x int);")

    def run(_: int) -> list[str]:
        with connect(empty_database_url) as own, migration_lock(own):
            return scripts(own, folder)

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(run, range(4)))

    assert sorted(len(applied) for applied in done) == [0, 0, 0, 4]
    with connect(empty_database_url) as conn:
        validate(conn, folder)


def test_the_projects_migrations_leave_nothing_to_do(database_url: str) -> None:
    with connect(database_url) as conn:
        validate(conn)
