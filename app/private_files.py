"""Files that only their owner may read: secrets and credentials."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO


class PrivateFileError(Exception):
    """A file that cannot be used; the message is one line for the user and holds nothing of it."""


def read_private(path: Path) -> str:
    """The text in *path*.

    Raises PrivateFileError where it cannot be read, or others than its owner may open it. (Windows
    has no such modes; there only its access lists count.)
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & OTHERS and os.name != "nt":
                raise PrivateFileError(
                    f"{path} has mode {mode:04o}, so others may open it; run chmod 600 {path}"
                )
            return file.read()
    except OSError as exc:
        raise PrivateFileError(f"{path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise PrivateFileError(f"{path} is no text in UTF-8") from exc


def write_private(path: Path, text: str, *, replace: bool = True) -> None:
    """*path* holds *text* and is its owner's alone; nobody ever sees it half written.

    Without *replace* a file that is there stays as it is: of several that write at once, the first
    wins.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.replace(path)
        else:
            with suppress(FileExistsError):
                path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
