"""Files that only their owner may read, and the folder of the application's own."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO


class PrivateFileError(Exception):
    """A file that cannot be used; the message is one line for the user and holds nothing of it."""


def make_own_folder(path: Path) -> None:
    """*path* is a folder that belongs to this user or root; a new one is closed to others.

    Raises PrivateFileError where it belongs to somebody else or anybody may put files into it, and
    OSError where it cannot be made.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    refuse_foreign(path, found)
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX and os.name != "nt":
        raise PrivateFileError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, so anybody may replace files in"
            f" it; run chmod 700 {path}"
        )


def refuse_foreign(path: Path, found: os.stat_result) -> None:
    """Raise PrivateFileError where *path* belongs neither to this user nor to root.

    Another owner could have put anything into it.
    """
    if os.name != "nt" and found.st_uid not in (os.geteuid(), 0):
        raise PrivateFileError(
            f"{path} belongs to user {_user_name(found.st_uid)}; run as that user, or remove it or"
            " choose another DATA_DIR"
        )


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _open_own(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0))


def read_private(path: Path, *, is_own: bool = False) -> str:
    """The text in *path*.

    Raises PrivateFileError where it cannot be read, or others than its owner may open it. (Windows
    has no such modes; there only its access lists count.) One that *is_own* was made by this
    application: it is no symbolic link and belongs to this user or root.
    """
    try:
        with open(path, encoding="utf-8", opener=_open_own if is_own else None) as file:
            if is_own:
                refuse_foreign(path, os.fstat(file.fileno()))
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & OTHERS and os.name != "nt":
                raise PrivateFileError(
                    f"{path} has mode {mode:04o}, so others may open it; run chmod 600 {path}"
                )
            return file.read()
    except OSError as exc:
        if is_own and exc.errno == errno.ELOOP:
            raise PrivateFileError(f"{path} is a symbolic link; remove it") from exc
        raise PrivateFileError(f"{path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise PrivateFileError(f"{path} is no text in UTF-8") from exc


def write_private(path: Path, text: str, *, replace: bool = True) -> None:
    """*path* holds *text* and is its owner's alone; it is never seen half written.

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
