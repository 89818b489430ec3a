"""Our checksums, versions and names are Flyway's."""

from __future__ import annotations

from pathlib import Path

import pytest

from commandbus import MigrationError
from commandbus.migrating.files import checksum, read_migrations, version_key


def test_checksum_is_the_one_that_flyway_writes_for_its_own_first_example() -> None:
    # The migration of Flyway's quickstart; users of Flyway 9 publish this row of their history:
    # | 1 | 1 | Create person table | SQL | V1__Create_person_table.sql | 1715188512 |
    text = "create table PERSON (\n    ID int not null,\n    NAME varchar(100) not null\n);\n"

    assert checksum(text) == 1715188512


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Computed with java.util.zip.CRC32 over the lines that BufferedReader.readLine returns.
        ("", 0),
        ("select 1;", -690524359),
        ("create table a (x int);\ninsert into a values (1);\n", 2093936528),
        # A form feed and Unicode's line ends do not end a line in Java.
        ("-- grüße € 🚀\rselect 1;\x0c\x85\u2028select 2;\r\n\r\n", 1094883412),
    ],
)
def test_checksum_is_what_java_computes(text: str, expected: int) -> None:
    assert checksum(text) == expected


def test_checksum_depends_neither_on_line_ends_nor_on_a_byte_order_mark() -> None:
    unix = "create table a (x int);\ninsert into a values (1);\n"

    for same in (
        unix.replace("\n", "\r\n"),
        unix.replace("\n", "\r"),
        unix.rstrip(),
        "\ufeff" + unix,
    ):
        assert checksum(same) == checksum(unix)


def test_versions_compare_number_by_number() -> None:
    mixed = ["10", "1.10", "20240101", "1", "002", "0.9", "1.2", "1.0.1"]

    assert sorted(mixed, key=version_key) == [
        "0.9", "1", "1.0.1", "1.2", "1.10", "002", "10", "20240101",
    ]  # fmt: skip
    assert version_key("1") == version_key("001") == version_key("1.0.0")


def test_files_are_read_in_the_order_in_which_flyway_applies_them(tmp_path: Path) -> None:
    for name in ("R__b_view.sql", "V10__ten.sql", "V002__two_words.sql", "R__a.sql", "V2_1__x.sql"):
        (tmp_path / name).write_text("select 1;")
    (tmp_path / "README.md").write_text("not a migration")

    files = read_migrations(tmp_path)

    assert [(file.version, file.description) for file in files] == [
        ("002", "two words"),
        ("2.1", "x"),
        ("10", "ten"),
        (None, "a"),
        (None, "b view"),
    ]


def test_a_file_in_a_folder_is_recorded_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "V1__x.sql").write_text("select 1;")

    assert [file.script for file in read_migrations(tmp_path)] == ["sub/V1__x.sql"]


@pytest.mark.parametrize(
    "name",
    ["V1_x.sql", "V__x.sql", "1__x.sql", "V1__.sql", "Va__x.sql", "U1__x.sql", "V1__x.sql.conf"],
)
def test_a_name_that_flyway_would_not_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("select 1;")

    with pytest.raises(MigrationError, match=name.replace(".", r"\.")):
        read_migrations(tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ("V1__a.sql", "V001__b.sql", "version"),
        ("V1__a.sql", "V1_0__b.sql", "version"),
        ("R__same_thing.sql", "sub/R__same_thing.sql", "description"),
    ],
)
def test_two_files_with_one_version_are_refused(
    tmp_path: Path, first: str, second: str, what: str
) -> None:
    (tmp_path / "sub").mkdir()
    for name in (first, second):
        (tmp_path / name).write_text("select 1;")

    with pytest.raises(MigrationError, match=f"have the same {what}"):
        read_migrations(tmp_path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "V1__latin.sql").write_bytes(b"-- gr\xfc\xdfe")

    with pytest.raises(MigrationError, match=r"V1__latin\.sql is not UTF-8"):
        read_migrations(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="does not exist"):
        read_migrations(tmp_path / "nowhere")
