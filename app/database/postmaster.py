"""What `postmaster.pid` says about a server, checked against the processes that really run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.database.errors import EmbeddedServerError

PID_FILE = "postmaster.pid"


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A running server of one data directory."""

    pid: int
    socket_dir: Path
    port: int
    status: str  # starting, ready, stopping

    @property
    def is_ready(self) -> bool:
        return self.status == "ready"

    @property
    def socket(self) -> Path:
        return self.socket_dir / f".s.PGSQL.{self.port}"


def find_postmaster(data_dir: Path) -> Postmaster | None:
    """The server that runs on *data_dir*, or None.

    A recorded pid whose process is gone, is a zombie, or is another program does not count: after
    a crash the number may belong to anyone.

    Raises EmbeddedServerError where the data is another user's.
    """
    try:
        lines = (data_dir / PID_FILE).read_bytes().decode("utf-8", "surrogateescape").splitlines()
    except FileNotFoundError:
        return None
    except PermissionError:
        raise EmbeddedServerError(
            f"The data in {data_dir} is closed to this user; run as its owner or as root, or"
            " choose another DATA_DIR"
        ) from None
    # pid, data directory, start time, port, socket directory, listen address, shared memory,
    # status; a server that has only begun to start has not written all of them.
    if not lines or not lines[0].strip().isdigit():
        return None
    pid = int(lines[0])
    if not serves(pid, data_dir):
        return None
    if len(lines) < 8:
        return Postmaster(pid, socket_dir=data_dir, port=0, status="starting")
    return Postmaster(pid, Path(lines[4]), int(lines[3]), lines[7].strip())


def server_processes(data_dir: Path) -> Iterator[psutil.Process]:
    """Every PostgreSQL process that works in *data_dir*, with or without a postmaster."""
    for process in psutil.process_iter():
        if serves(process.pid, data_dir):
            yield process


def serves(pid: int, data_dir: Path) -> bool:
    """Whether *pid* is a live PostgreSQL process of *data_dir*, which is where it works.

    A postmaster that has only been launched names the folder before it works there.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or "postgres" not in process.name():
            return False
        try:
            if Path(process.cwd()) == data_dir:
                return True
        except psutil.AccessDenied:
            pass  # another user's; its command line may still be read
        return str(data_dir) in process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
