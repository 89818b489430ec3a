"""Migration files by Flyway's rules: names, versions and checksums. No database here."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from commandbus.errors import MigrationError

_NAME = re.compile(r"(?:V(?P<version>\d+(?:[._]\d+)*)|R)__(?P<description>.+)\.sql")
_LINE_END = re.compile(r"\r\n|\r|\n")


# An installed package holds the migrations; in the repository they stand at its root.
_INSTALLED = Path(__file__).parent / "sql"
_REPOSITORY = Path(__file__).parents[2] / "migrations"


def migrations_folder() -> Path:
    """The folder with the migrations of this release."""
    return _INSTALLED if _INSTALLED.is_dir() else _REPOSITORY


@dataclass(frozen=True, slots=True)
class MigrationFile:
    """One file of the migrations folder, read once: what is checked is what is run."""

    version: str | None  # None for a repeatable one
    description: str
    script: str  # path below the folder, as Flyway records it
    text: str
    checksum: int

    @property
    def label(self) -> str:
        """How messages name the migration."""
        return self.script


def checksum(text: str) -> int:
    """Flyway's checksum: CRC-32 over the lines without their ends, as a signed 32-bit integer.

    So it depends neither on the kind of line end nor on a byte order mark.
    """
    lines = _LINE_END.split(text.removeprefix("\ufeff"))
    value = zlib.crc32("".join(lines).encode("utf-8"))
    return value - (1 << 32) if value >= 1 << 31 else value


def version_key(version: str) -> tuple[int, ...]:
    """Sorts versions as Flyway does: number by number, where 1, 001 and 1.0 are the same."""
    parts = [int(part) for part in version.split(".")]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def read_migrations(folder: Path) -> list[MigrationFile]:
    """All migrations below *folder*: versioned ones by version, then repeatable by description.

    Raises MigrationError for a missing folder, a file whose name is not Flyway's, a file that is
    not UTF-8 and for two files with one version or description.
    """
    if not folder.is_dir():
        raise MigrationError(f"The migrations folder {folder} does not exist")
    for settings in folder.rglob("*.sql.conf"):
        raise MigrationError(f"{settings.name}: settings for a single migration are not supported")
    files = [_read(folder, path) for path in sorted(folder.rglob("*.sql"))]
    versioned = [file for file in files if file.version is not None]
    versioned.sort(key=lambda file: version_key(file.version or ""))
    repeatable = sorted((file for file in files if file.version is None), key=_description)
    _refuse_twins((version_key(file.version or ""), file) for file in versioned)
    _refuse_twins((file.description, file) for file in repeatable)
    return versioned + repeatable


def _description(file: MigrationFile) -> str:
    return file.description


def _read(folder: Path, path: Path) -> MigrationFile:
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise MigrationError(
            f"{path.name} is not a migration's name; write V001__what_it_does.sql"
            " or R__what_it_defines.sql"
        )
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise MigrationError(f"{path.name} is not UTF-8: {exc.reason} at byte {exc.start}") from exc
    except OSError as exc:
        raise MigrationError(f"{path} cannot be read: {exc.strerror}") from exc
    version = name["version"]
    return MigrationFile(
        version=None if version is None else version.replace("_", "."),
        description=name["description"].replace("_", " "),
        script=path.relative_to(folder).as_posix(),
        text=text.removeprefix("\ufeff"),
        checksum=checksum(text),
    )


def _refuse_twins(keyed: Iterable[tuple[object, MigrationFile]]) -> None:
    seen: dict[object, MigrationFile] = {}
    for key, file in keyed:
        if key in seen:
            what = "description" if file.version is None else "version"
            raise MigrationError(
                f"{seen[key].script} and {file.script} have the same {what}; rename one of them"
            )
        seen[key] = file
