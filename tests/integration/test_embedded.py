"""The embedded server lives exactly as long as somebody uses it, whatever happens to its users."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy

from app.database import Database, EmbeddedServerError, embedded, open_database
from app.database.account import SYSTEM_USER
from app.database.embedded import EmbeddedServer
from app.database.postmaster import PID_FILE
from app.settings.configuration import PROJECT_ROOT, Settings

# A process that uses the server until its standard input ends; it says the server's pid.
USER = """
import sys
from pathlib import Path
from app.database.embedded import EmbeddedServer

with EmbeddedServer(Path(sys.argv[1])) as server:
    print(server.running().pid, flush=True)
    sys.stdin.read()
"""
NOBODY = 65534


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A DATA_DIR; no server is left on it after the test."""
    yield tmp_path / "data"
    EmbeddedServer(tmp_path / "data").stop(force=True)


@pytest.fixture
def start_user() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts processes that use the server; none is left after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(home: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", USER, home],
            cwd=PROJECT_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def server_pid(user: subprocess.Popen[str]) -> int:
    """The pid that *user* says; waits until it uses the server."""
    assert user.stdout is not None
    return int(user.stdout.readline())


def end(user: subprocess.Popen[str]) -> None:
    user.communicate()
    assert user.returncode == 0


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while not is_gone(pid):
        assert time.monotonic() < deadline, f"process {pid} does not end"
        time.sleep(0.01)


def migrations(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "V1__kept.sql").write_text("create table kept (x int); insert into kept values (1);")
    return folder


def kept(database: Database) -> list[tuple[int]]:
    with psycopg.connect(database.url) as conn:
        return conn.execute("select x from kept").fetchall()


def test_the_first_user_starts_it_and_the_last_one_stops_it(
    home: Path, start_user: Callable[[Path], subprocess.Popen[str]]
) -> None:
    first, second = start_user(home), start_user(home)
    pid = server_pid(first)
    assert server_pid(second) == pid

    end(first)
    assert not is_gone(pid)
    end(second)
    assert is_gone(pid)


def test_a_killed_user_counts_no_longer(
    home: Path, start_user: Callable[[Path], subprocess.Popen[str]]
) -> None:
    killed = start_user(home)
    pid = server_pid(killed)
    killed.kill()
    killed.wait()
    assert not is_gone(pid)

    last = start_user(home)
    assert server_pid(last) == pid
    end(last)
    assert is_gone(pid)


def test_a_users_ctrl_c_does_not_reach_the_server(
    home: Path, start_user: Callable[[Path], subprocess.Popen[str]]
) -> None:
    user = start_user(home)
    pid = server_pid(user)

    assert os.getpgid(pid) not in (os.getpgid(user.pid), os.getpgid(0))


def test_data_survives_a_stop_and_a_crash(home: Path, tmp_path: Path) -> None:
    settings, folder = Settings(data_dir=home), migrations(tmp_path / "migrations")
    with open_database(settings, folder=folder) as database:
        assert database.preparation.applied == ("V1__kept.sql",)

    with open_database(settings, folder=folder) as database:
        assert database.preparation.applied == ()
        postmaster = EmbeddedServer(home).running()
        assert postmaster is not None
        os.kill(postmaster.pid, signal.SIGKILL)
        wait_until_gone(postmaster.pid)

    with open_database(settings, folder=folder) as database:
        assert kept(database) == [(1,)]


@pytest.mark.parametrize("left", ["another program's pid", "a dead pid", "nothing"])
def test_a_stale_pid_file_does_not_prevent_a_start(
    home: Path, start_user: Callable[[Path], subprocess.Popen[str]], left: str
) -> None:
    with EmbeddedServer(home) as server:
        postmaster = server.running()
        assert postmaster is not None
        lines = (server.data_dir / PID_FILE).read_text().splitlines()
    dead = str(postmaster.pid)
    lines[0] = {"another program's pid": str(os.getpid()), "a dead pid": dead, "nothing": ""}[left]
    pid_file = server.data_dir / PID_FILE
    pid_file.write_text("" if left == "nothing" else "\n".join(lines) + "\n")

    assert server.running() is None
    user = start_user(home)
    assert not is_gone(server_pid(user))
    end(user)


def test_half_made_data_does_not_count(home: Path) -> None:
    unfinished = home / "pg.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")

    with EmbeddedServer(home) as server:
        assert server.running() is not None
    assert not unfinished.exists()


@pytest.mark.parametrize(
    "name",
    ["with space", "grüße-日本", "a,b", "quote\"'$x%41", "long-" + "x" * 140],
)
def test_an_embedded_database_works_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    home = tmp_path / name

    with open_database(Settings(data_dir=home), folder=migrations(tmp_path / "m")) as database:
        assert kept(database) == [(1,)]
        engine = sqlalchemy.create_engine(database.sqlalchemy_url)
        with engine.connect() as conn:
            assert conn.execute(sqlalchemy.text("select x from kept")).all() == [(1,)]
        engine.dispose()
        postmaster = EmbeddedServer(home).running()
        assert postmaster is not None
        assert postmaster.socket_dir.stat().st_mode & 0o077 == 0
    assert EmbeddedServer(home).running() is None


def test_the_embedded_server_does_not_run_as_root(home: Path) -> None:
    with EmbeddedServer(home) as server:
        postmaster = server.running()
        assert postmaster is not None
        user = psutil.Process(postmaster.pid).username()

    assert user == (SYSTEM_USER if os.geteuid() == 0 else psutil.Process().username())


def test_an_ordinary_user_needs_nothing_of_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("every other test here runs as an ordinary user already")
    home = Path(tempfile.mkdtemp(prefix="commandbus-test-"))
    os.chown(home, NOBODY, NOBODY)
    try:
        ran = subprocess.run(
            [sys.executable, "-c", USER, home / "data"],
            cwd=PROJECT_ROOT,
            input="",
            capture_output=True,
            text=True,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            env={"PATH": os.defpath},
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert (home / "data" / "pg" / "PG_VERSION").stat().st_uid == NOBODY
        wait_until_gone(int(ran.stdout))
    except PermissionError:
        pytest.skip("this Python is in a folder that is closed to other users")
    finally:
        shutil.rmtree(home)


def test_data_of_another_version_is_refused(home: Path) -> None:
    with EmbeddedServer(home) as server:
        data_dir = server.data_dir
    (data_dir / "PG_VERSION").write_text("16\n")

    with pytest.raises(EmbeddedServerError, match="PostgreSQL 16's, the embedded server is 18"):
        EmbeddedServer(home).join()


def test_a_folder_with_other_things_in_it_is_refused(home: Path) -> None:
    (home / "pg").mkdir(parents=True)
    (home / "pg" / "holiday.jpg").touch()

    with pytest.raises(EmbeddedServerError, match="is not empty and holds no PostgreSQL data"):
        EmbeddedServer(home).join()
    assert (home / "pg" / "holiday.jpg").exists()


def test_a_data_dir_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmbeddedServerError, match="cannot be created: Not a directory"):
        EmbeddedServer(tmp_path / "file" / "data").join()


def test_a_server_that_does_not_start_says_why_in_one_line(home: Path) -> None:
    with EmbeddedServer(home) as server:
        data_dir = server.data_dir
    with (data_dir / "postgresql.auto.conf").open("a") as conf:
        conf.write("shared_buffers = 'plenty'\n")

    with pytest.raises(EmbeddedServerError) as refused:
        EmbeddedServer(home).join()

    assert 'invalid value for parameter "shared_buffers": "plenty"' in str(refused.value)
    assert "\n" not in str(refused.value)
    assert EmbeddedServer(home).running() is None


def test_stop_spares_a_server_in_use_unless_forced(
    home: Path, start_user: Callable[[Path], subprocess.Popen[str]]
) -> None:
    user = start_user(home)
    pid = server_pid(user)

    with pytest.raises(EmbeddedServerError, match="in use by another process"):
        EmbeddedServer(home).stop()
    assert not is_gone(pid)

    assert EmbeddedServer(home).stop(force=True)
    assert is_gone(pid)
    assert not EmbeddedServer(home).stop(force=True)
    end(user)


def test_joining_and_leaving_twice_is_harmless(home: Path) -> None:
    server = EmbeddedServer(home)
    server.join()
    server.join()
    other = EmbeddedServer(home)
    other.join()

    server.leave()
    server.leave()
    assert other.running() is not None
    other.leave()
    assert other.running() is None


def test_a_forked_child_leaves_the_server_to_its_parent(home: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from app.database.embedded import EmbeddedServer

with EmbeddedServer(Path(sys.argv[1])) as server:
    child = os.fork()
    if child == 0:
        server.leave()
        sys.exit(0)
    os.waitpid(child, 0)
    print(server.running() is not None)
"""

    ran = subprocess.run(
        [sys.executable, "-c", program, home], cwd=PROJECT_ROOT, capture_output=True, text=True
    )

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "True\n", "")
    assert EmbeddedServer(home).running() is None


def test_a_user_that_forgets_to_leave_leaves_at_its_end(home: Path) -> None:
    program = """
import sys
from pathlib import Path
from app.database.embedded import EmbeddedServer

EmbeddedServer(Path(sys.argv[1])).join()
"""

    subprocess.run([sys.executable, "-c", program, home], cwd=PROJECT_ROOT, check=True)

    assert EmbeddedServer(home).running() is None


HOLDER = """
import fcntl, os, sys

descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_CREAT, 0o666)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_that_somebody_keeps_is_not_waited_for_without_a_word_and_an_end(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home.mkdir()
    monkeypatch.setattr(embedded, "SAY_SECONDS", 0.05)
    monkeypatch.setattr(embedded, "LOCK_SECONDS", 0.2)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, home / "start.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    holder.stdout.readline()

    with pytest.raises(EmbeddedServerError) as refused:
        EmbeddedServer(home).join()
    holder.communicate()

    [told] = [record for record in caplog.records if record.message == "database_busy"]
    assert told.levelname == "WARNING"
    if sys.platform == "linux":
        assert f"held by process {holder.pid} for" in str(refused.value)


def test_nobody_else_gets_into_the_data_dir_or_its_locks(home: Path) -> None:
    with EmbeddedServer(home):
        folder = home.stat()
        locks = [(home / name).stat().st_mode & 0o777 for name in ("start.lock", "users.lock")]

    assert folder.st_mode & 0o007 == 0
    assert folder.st_mode & 0o077 in (0, 0o010)  # the server's own user, where root started it
    assert locks == [0o600, 0o600]


def test_locks_of_an_older_release_are_closed_to_others(home: Path) -> None:
    home.mkdir(mode=0o755)
    (home / "start.lock").touch(0o644)

    assert EmbeddedServer(home).stop() is False
    assert (home / "start.lock").stat().st_mode & 0o777 == 0o600


def test_a_lock_that_is_a_symbolic_link_is_not_followed(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (home / "start.lock").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(EmbeddedServerError, match="symbolic link"):
        EmbeddedServer(home).join()
    assert not (tmp_path / "elsewhere").exists()
    (home / "start.lock").unlink()  # for the fixture, which looks after the server


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_another_user_has_made_is_not_used(home: Path) -> None:
    home.mkdir()
    (home / "start.lock").touch()
    os.chown(home / "start.lock", NOBODY, NOBODY)
    with pytest.raises(EmbeddedServerError, match=r"start.lock belongs to user nobody"):
        EmbeddedServer(home).join()
    os.chown(home, NOBODY, NOBODY)
    with pytest.raises(EmbeddedServerError, match=r"data belongs to user nobody"):
        EmbeddedServer(home).join()
    (home / "start.lock").unlink()  # for the fixture, which looks after the server
    os.chown(home, 0, 0)


def test_a_data_dir_into_which_anybody_may_put_files_is_refused(home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(EmbeddedServerError, match="run chmod 700"):
        EmbeddedServer(home).join()
