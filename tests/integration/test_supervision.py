"""Worker processes that are kept running: which are started again, and which are not."""

from __future__ import annotations

import os
import signal

import pytest

from app.processes import EndedProcess, WorkerProcesses
from app.settings.configuration import Settings
from app.worker.supervision import START_ATTEMPTS, Supervisor, TooManyWorkersError
from tests.waiting import eventually_now

AWAY = Settings(database_url="postgresql://nobody@127.0.0.1:1/x", log_level="CRITICAL")


@pytest.fixture
def make_supervisor():
    made = []

    def make(**more):
        made.append(Supervisor(WorkerProcesses(AWAY), **more))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def kill_and_see(supervisor, pid):
    """Kill a process and wait until its end was seen; what became of its place."""
    os.kill(pid, signal.SIGKILL)
    eventually_now(lambda: pid not in supervisor.pids, message="its end")
    return supervisor.failures_within(60)[-1]


@pytest.mark.parametrize(
    ("ended", "is_asked"),
    [
        (EndedProcess(1, 0, obeyed=True), True),
        (EndedProcess(1, 143, obeyed=True), True),  # at once, by a second signal
        (EndedProcess(1, -signal.SIGTERM), True),  # before it listened
        (EndedProcess(1, 0), False),  # a handler that calls os._exit(0)
        (EndedProcess(1, 1), False),
        (EndedProcess(1, -signal.SIGKILL), False),
        (EndedProcess(1, -signal.SIGRTMIN), False),
    ],
)
def test_what_a_worker_says_tells_whether_it_ended_as_asked(ended, is_asked):
    assert ended.is_asked == is_asked
    assert str(ended).startswith("worker process 1 ")


def test_each_pause_is_longer_and_a_stop_ends_it_at_once(make_supervisor):
    supervisor = make_supervisor(first_pause=0.1)
    first = supervisor.start(flags={"database-wait": 3600})
    failure = kill_and_see(supervisor, first)
    eventually_now(lambda: failure.successor, message="a successor")
    pause = failure.due - failure.at
    [second] = supervisor.pids
    assert second == failure.successor
    later = kill_and_see(supervisor, second)
    assert later.due - later.at == pytest.approx(2 * pause, rel=0.1)

    hasty = make_supervisor(first_pause=3600)
    waiting = kill_and_see(hasty, hasty.start(flags={"database-wait": 3600}))
    assert waiting.seconds_left > 3000
    assert not hasty.is_done
    hasty.stop()
    assert hasty.is_done
    assert hasty.exit_code == 0


def test_one_that_never_comes_to_work_is_given_up(make_supervisor):
    supervisor = make_supervisor(first_pause=0.01)
    supervisor.start(flags={"database-wait": 0}, is_needed=True)
    eventually_now(lambda: supervisor.given_up, message="the end of the attempts")
    assert f"ended {START_ATTEMPTS} times in a row before it came to work" in supervisor.given_up
    assert "exit code 1" in supervisor.given_up
    assert supervisor.is_done
    assert supervisor.exit_code == 1


def test_there_are_as_many_as_there_may_be(make_supervisor):
    supervisor = make_supervisor(first_pause=3600)
    pid = supervisor.start(flags={"database-wait": 3600}, at_most=1)
    with pytest.raises(TooManyWorkersError):
        supervisor.start(at_most=1)
    kill_and_see(supervisor, pid)  # its place is kept for its successor
    with pytest.raises(TooManyWorkersError):
        supervisor.start(at_most=1)
