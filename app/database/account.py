"""The system account of the embedded server: PostgreSQL refuses to run as root."""

from __future__ import annotations

import logging
import os
import pwd
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.database.errors import EmbeddedServerError
from commandbus.errors import one_line

logger = logging.getLogger(__name__)

SYSTEM_USER = "pgserver"


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs the server's programs, and whether that is somebody else than this process."""

    uid: int
    gid: int
    name: str
    is_other: bool

    def run(
        self, command: Sequence[str | Path], *, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run *command* to its end as this account, without a terminal; its output is captured.

        Raises EmbeddedServerError where it cannot be started.
        """
        try:
            return subprocess.run(
                command,
                env=env,
                cwd="/",  # the current folder may be closed to this account
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the application, which stops the server
                check=False,
                user=self.uid if self.is_other else None,
                group=self.gid if self.is_other else None,
                extra_groups=[] if self.is_other else None,
            )
        except OSError as exc:
            raise EmbeddedServerError(
                f"{Path(command[0]).name} could not be run as user {self.name}: {exc}"
            ) from exc

    def own(self, path: Path) -> None:
        """Make this account the owner of *path*."""
        if self.is_other:
            os.chown(path, self.uid, self.gid)


def server_account(data_dir: Path) -> Account:
    """The account for the server of *data_dir*.

    An ordinary user runs it alone. For root it is the owner of existing data, else the system user
    `pgserver`, which is created where it is missing.

    Raises EmbeddedServerError where the data is another's, or the user cannot be created.
    """
    owner = data_dir.stat().st_uid if data_dir.exists() else None
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise EmbeddedServerError(
                f"The data in {data_dir} belongs to user {_user_name(owner)}; run as that user or"
                " as root, or choose another DATA_DIR"
            )
        return Account(os.geteuid(), os.getegid(), _user_name(os.geteuid()), is_other=False)
    entry = _system_user() if owner in (None, 0) else pwd.getpwuid(owner)
    return Account(entry.pw_uid, entry.pw_gid, entry.pw_name, is_other=True)


def open_way(account: Account, *paths: Path) -> None:
    """Let *account* reach *paths*: every folder above them may be passed through, not listed.

    Only root needs this, for the folders that keep other users out, such as /root.
    """
    if not account.is_other:
        return
    for folder in {parent for path in paths for parent in path.parents}:
        found = folder.stat()
        mode = found.st_mode
        if not mode & stat.S_IXOTH and not (found.st_gid == account.gid and mode & stat.S_IXGRP):
            logger.info("folder_opened", extra={"path": str(folder), "user": account.name})
            folder.chmod(mode | stat.S_IXOTH)


def open_home(account: Account, home: Path) -> None:
    """Let *account* pass through *home*, by its group; no other account gains access."""
    found = home.stat()
    if account.is_other and not found.st_mode & stat.S_IXOTH and found.st_uid == os.geteuid():
        os.chown(home, -1, account.gid)
        home.chmod(stat.S_IMODE(found.st_mode) & ~stat.S_IRWXG | stat.S_IXGRP)


def open_programs(account: Account, folder: Path) -> None:
    """Let *account* read all of *folder* and run its programs.

    Only root needs this, where the packages were installed with a strict umask.
    """
    if not account.is_other or folder.stat().st_mode & stat.S_IROTH:
        return
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    try:
        created = subprocess.run(
            ["useradd", "--system", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        reason = one_line(created.stderr)
    except OSError as exc:
        reason = str(exc)
    try:
        return pwd.getpwnam(SYSTEM_USER)  # another process may have been first
    except KeyError:
        raise EmbeddedServerError(
            f"As root the embedded server needs the system user {SYSTEM_USER}, which could not be"
            f" created ({reason}); run as an ordinary user, or set DATABASE_URL"
        ) from None


def _user_name(uid: int | None) -> str:
    try:
        return pwd.getpwuid(-1 if uid is None else uid).pw_name
    except KeyError:
        return str(uid)
