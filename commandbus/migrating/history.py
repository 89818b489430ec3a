"""Flyway's history table, and how it compares with the files.

Nothing is changed here. `compare` decides as `flyway validate` and `flyway migrate` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from commandbus.errors import MigrationError
from commandbus.migrating.files import MigrationFile, version_key

# As Flyway creates it for PostgreSQL.
CREATE_HISTORY = """
create table public.flyway_schema_history (
    installed_rank int not null,
    version varchar(50),
    description varchar(200) not null,
    type varchar(20) not null,
    script varchar(1000) not null,
    checksum integer,
    installed_by varchar(100) not null,
    installed_on timestamp not null default now(),
    execution_time integer not null,
    success boolean not null
);
alter table public.flyway_schema_history
    add constraint flyway_schema_history_pk primary key (installed_rank);
create index flyway_schema_history_s_idx on public.flyway_schema_history (success);
"""


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One row of flyway_schema_history."""

    installed_rank: int
    version: str | None
    description: str
    type: str
    script: str
    checksum: int | None
    installed_on: datetime
    success: bool


class State(StrEnum):
    """How a migration stands in one database, in Flyway's words."""

    APPLIED = "applied"
    PENDING = "pending"
    OUTDATED = "outdated"  # a repeatable one whose text changed since
    BELOW_BASELINE = "below baseline"
    FUTURE = "future"  # applied by newer code than this


@dataclass(frozen=True, slots=True)
class Standing:
    """One migration, from a file or from the history, and how it stands."""

    version: str | None
    description: str
    state: State
    installed_on: datetime | None
    file: MigrationFile | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Files against history: how every migration stands, and what forbids migrating."""

    standings: tuple[Standing, ...]
    problems: tuple[str, ...]

    @property
    def to_apply(self) -> tuple[MigrationFile, ...]:
        """The files to run, in order.

        Where a newer release migrated this database, its repeatable migrations stay: that release
        needs the functions that they define.
        """
        newer = any(standing.state is State.FUTURE for standing in self.standings)
        return tuple(
            standing.file
            for standing in self.standings
            if standing.file is not None
            and standing.state in (State.PENDING, State.OUTDATED)
            and not (newer and standing.version is None)
        )

    def refuse_problems(self) -> None:
        """Raise MigrationError with every reason why this database must not be migrated."""
        if self.problems:
            raise MigrationError("; ".join(self.problems))


def read_history(conn: Connection[TupleRow]) -> list[HistoryRow] | None:
    """The history in order of installation, or None where there is no history table yet."""
    exists = conn.execute("select to_regclass('public.flyway_schema_history') is not null")
    if exists.fetchone() == (False,):
        return None
    with conn.cursor(row_factory=class_row(HistoryRow)) as cursor:
        cursor.execute(
            "select installed_rank, version, description, type, script, checksum, installed_on,"
            " success from public.flyway_schema_history order by installed_rank"
        )
        return cursor.fetchall()


def compare(files: Sequence[MigrationFile], history: Sequence[HistoryRow]) -> Comparison:
    """Compare *files* with *history*."""
    return _Comparing(files, history).result()


class _Comparing:
    """The state of one comparison; `result` is the only thing to call."""

    def __init__(self, files: Sequence[MigrationFile], history: Sequence[HistoryRow]) -> None:
        self._files = files
        self._problems: list[str] = []
        self._baseline: tuple[int, ...] = ()
        self._versions: dict[tuple[int, ...], HistoryRow] = {}
        self._repeatables: dict[str, HistoryRow] = {}
        for row in history:
            self._take(row)

    def _take(self, row: HistoryRow) -> None:
        """Take *row* into account; it replaces earlier rows of the same migration."""
        if not row.success:
            self._problems.append(
                f"{row.script} failed at an earlier attempt; repair what it left behind, then"
                " remove its row from flyway_schema_history (or run flyway repair)"
            )
        elif row.type == "SCHEMA":
            return  # Flyway's note that it created the schemas
        elif row.version is None:
            self._repeatables[row.description] = row
            if row.type == "DELETE":
                del self._repeatables[row.description]
        elif row.type == "BASELINE":
            self._baseline = version_key(row.version)
        elif row.type == "DELETE" or row.type.startswith("UNDO"):
            self._versions.pop(version_key(row.version), None)
        else:
            self._versions[version_key(row.version)] = row

    def result(self) -> Comparison:
        standings = [self._versioned(file) for file in self._files if file.version is not None]
        standings += self._known_to_the_database_only()
        standings += [self._repeatable(file) for file in self._files if file.version is None]
        return Comparison(tuple(standings), tuple(self._problems))

    def _versioned(self, file: MigrationFile) -> Standing:
        key = version_key(file.version or "")
        row = self._versions.get(key)
        if row is not None:
            self._compare_applied(file, row)
            return _standing(file, State.APPLIED, row)
        if self._baseline and key <= self._baseline:
            return _standing(file, State.BELOW_BASELINE)
        if key < self._highest:
            highest = self._versions[self._highest].version
            self._problems.append(
                f"{file.script} was added below version {highest}, which is applied already;"
                " give it a higher version"
            )
        return _standing(file, State.PENDING)

    def _repeatable(self, file: MigrationFile) -> Standing:
        row = self._repeatables.get(file.description)
        if row is None:
            return _standing(file, State.PENDING)
        same = row.checksum == file.checksum
        return _standing(file, State.APPLIED if same else State.OUTDATED, row)

    def _known_to_the_database_only(self) -> list[Standing]:
        """Applied migrations without a file: a newer release's are fine, others are problems."""
        on_disk = {version_key(file.version) for file in self._files if file.version is not None}
        newest_on_disk = max(on_disk, default=())
        future = []
        for key, row in self._versions.items():
            if key in on_disk:
                continue
            if key > newest_on_disk:
                future.append(
                    Standing(row.version, row.description, State.FUTURE, row.installed_on, None)
                )
            else:
                self._missing(row)
        described = {file.description for file in self._files if file.version is None}
        for description, row in self._repeatables.items():
            if description not in described and not future:
                self._missing(row)
        return future

    def _missing(self, row: HistoryRow) -> None:
        self._problems.append(f"{row.script} is applied, but its file is missing")

    def _compare_applied(self, file: MigrationFile, row: HistoryRow) -> None:
        if row.checksum is not None and row.checksum != file.checksum:
            self._problems.append(
                f"{file.script} was changed after it was applied (checksum {file.checksum}, applied"
                f" {row.checksum}); put it back and write a new migration"
            )
        if row.description != file.description:
            self._problems.append(f"{row.script} was renamed to {file.script} after it was applied")

    @property
    def _highest(self) -> tuple[int, ...]:
        return max(self._versions, default=())


def _standing(file: MigrationFile, state: State, row: HistoryRow | None = None) -> Standing:
    installed_on = None if row is None else row.installed_on
    return Standing(file.version, file.description, state, installed_on, file)
