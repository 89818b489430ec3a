"""Workers: which run and what they do; start one here; stop one or all."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple, cast

from flask import current_app, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue

from app.actions import workers as local_workers
from app.actions.inputs import StartWorker
from app.models import WorkerRow, WorkerState, get_worker, list_workers, statistics
from app.models.paging import LARGEST_ID
from app.models.workers import LISTED
from app.processes import request_stop
from app.server import access
from app.server.errors import Problem
from app.server.portal import call, current_portal
from app.settings.configuration import WORKER_OPTIONS, Settings
from app.web import bp
from app.web.forms import Form
from app.web.remembered import recorded_operator
from app.web.rendering import PageContext, ask_to_confirm, render_page

LIVE_SECONDS = 2
SHOWN_COMMANDS = 3
LOST_SECONDS, LOST_SHOWN = 900, 3
"""How long, and for how many workers, an alert says that a worker disappeared."""
SHOWN_PAST = 100

_CONCURRENCY = next(option for option in WORKER_OPTIONS if option.name == "concurrency")


class Look(NamedTuple):
    """How a worker's state looks."""

    label: str
    icon: str
    tone: str
    meaning: str


STARTING = Look("Starting", "clock", "pending", "The process is running but not registered yet.")
STOPPING = Look("Stopping", "hourglass", "pending", "It finishes what it runs, then stops.")
LOOKS = {
    WorkerState.ALIVE: Look("Alive", "check", "completed", "Its heartbeat comes on time."),
    WorkerState.LATE: Look("Late", "alert", "tsq", "Its heartbeat is overdue."),
    WorkerState.GONE: Look(
        "Gone",
        "cloud-off",
        "failed",
        "No heartbeat for long: it ended, hangs or is cut off.",
    ),
    WorkerState.STOPPED: Look("Stopped", "stop", "cancelled", "It reported that it stopped."),
}


@bp.get("/workers")
@access.viewer
def workers() -> ResponseReturnValue:
    return render_page("pages/workers.html", Workers(), partials=("workers_list",))


@bp.post("/workers/start")
@access.operator
def start_worker() -> ResponseReturnValue:
    form = Form(request.form)
    wanted = form.read(StartWorker, {"concurrency": form.number("concurrency")})
    if wanted is None:
        flash(f"Concurrency: {form.errors['concurrency']}.", "error")
        return _back()
    try:
        pid = local_workers.start(wanted.concurrency)
    except Problem as problem:
        if problem.code == 403:
            raise
        flash(problem.description or "", "error")
        return _back()
    flash(f"Worker process {pid} is starting; it appears below once it is registered.", "success")
    return _back()


@bp.post("/workers/<int:worker_id>/stop")
@access.operator
def stop_worker(worker_id: int) -> ResponseReturnValue:
    worker = get_worker(worker_id) if worker_id <= LARGEST_ID else None
    if worker is None:
        raise Problem(404, "unknown_worker", f"There is no worker w-{worker_id}.")
    if worker.stopped_at is not None:
        flash(f"{worker.name} has stopped already.", "info")
        return _back()
    if question := ask_to_confirm(
        title=f"Stop {worker.name}",
        message=stop_question(worker),
        action="Stop worker",
        back=url_for("web.workers"),
    ):
        return question
    if call(request_stop, current_portal().pool, worker_id, recorded_operator()):
        flash(f"{worker.name} was asked to stop. It may finish what it runs first.", "success")
    else:
        flash(f"{worker.name} is gone. If it comes back, it stops.", "info")
    return _back()


@bp.post("/workers/stop")
@access.operator
def stop_all_workers() -> ResponseReturnValue:
    active = [row for row in list_workers() if row.is_active]
    if not active:
        flash("No worker is running.", "info")
        return _back()
    if question := ask_to_confirm(
        title="Stop all workers",
        message=stop_all_question(active),
        action="Stop all",
        back=url_for("web.workers"),
    ):
        return question
    asked = call(request_stop, current_portal().pool, None, recorded_operator())
    was = "was" if asked == 1 else "were"
    flash(f"{_count(asked, 'worker')} {was} asked to stop.", "success")
    return _back()


class Workers(PageContext):
    """The values of the page and its refresh."""

    concurrency = _CONCURRENCY
    live_seconds = LIVE_SECONDS
    shown_commands = SHOWN_COMMANDS
    STARTING = STARTING

    @cached_property
    def rows(self) -> list[WorkerRow]:
        """The workers that are kept."""
        return list_workers()

    @cached_property
    def active(self) -> list[WorkerRow]:
        """Those that run, each in a place that heartbeats do not change."""
        return sorted((row for row in self.rows if row.is_active), key=lambda row: row.worker_id)

    @cached_property
    def _all_past(self) -> list[WorkerRow]:
        return [row for row in self.rows if not row.is_active]

    @property
    def past(self) -> list[WorkerRow]:
        """The latest of those that stopped or are gone."""
        return self._all_past[:SHOWN_PAST]

    @property
    def more_past(self) -> bool:
        """Whether there are others before them."""
        return len(self._all_past) > SHOWN_PAST or len(self.rows) >= LISTED

    @property
    def lost(self) -> list[WorkerRow]:
        """Those that were lost a short time ago."""
        return [row for row in self.rows if _is_lost(row)][:LOST_SHOWN]

    @cached_property
    def own(self) -> local_workers.LocalWorkers:
        """What happens to the processes of this server."""
        return local_workers.watch(self.rows)

    @property
    def own_host(self) -> str:
        """The host of this server."""
        return local_workers.own_host()

    @property
    def can_start(self) -> bool:
        """Whether this server starts workers."""
        return local_workers.can_start()

    @property
    def bound_to(self) -> str:
        """The address that this server listens on."""
        return self._settings.host

    @property
    def start_workers(self) -> bool:
        """Whether starting workers is switched on."""
        return self._settings.start_workers

    @property
    def _settings(self) -> Settings:
        return cast(Settings, current_app.config["SETTINGS"])

    @cached_property
    def totals(self) -> dict[str, float]:
        """The figures of all workers together, and how much waits for them."""
        return {
            "alive": sum(row.state is WorkerState.ALIVE for row in self.active),
            "slots": sum(row.concurrency for row in self.active),
            "busy": sum(row.running_count for row in self.active),
            "rate": sum(row.rate_per_second for row in self.active),
            "queue_depth": statistics.queue_depth(),
        }

    @property
    def stop_all_question(self) -> str:
        """The question before all workers are stopped."""
        return stop_all_question(self.active)

    @staticmethod
    def look_of(worker: WorkerRow) -> Look:
        """How the worker's state looks."""
        return look_of(worker)

    @staticmethod
    def stop_question(worker: WorkerRow) -> str:
        """The question before a worker is stopped."""
        return stop_question(worker)


def look_of(worker: WorkerRow) -> Look:
    """How the worker's state looks: as stopping after a request to stop, until it has stopped."""
    if worker.is_active and worker.stop_requested_at is not None:
        return STOPPING
    return LOOKS[worker.state]


def stop_question(worker: WorkerRow) -> str:
    """The question before a worker is stopped."""
    if worker.running_count:
        running = _count(worker.running_count, "running command")
        return (
            f"{worker.name} on {worker.host} takes no new commands. It finishes what it runs"
            f" ({running} at its last heartbeat) and stops, at the latest after its drain time."
        )
    return f"{worker.name} on {worker.host} ran nothing at its last heartbeat and stops soon."


def stop_all_question(active: list[WorkerRow]) -> str:
    """The question before all workers are stopped."""
    hosts = len({row.host for row in active})
    running = sum(row.running_count for row in active)
    where = f" on {hosts} hosts" if hosts > 1 else ""
    is_one = len(active) == 1
    finish = ""
    if running:
        finish = f", {'finishes' if is_one else 'finish'} {_count(running, 'running command')}"
    return (
        f"{_count(len(active), 'worker')}{where} {'takes' if is_one else 'take'} no new commands"
        f"{finish} and {'stops' if is_one else 'stop'}, at the latest after the drain time."
        " Queued commands wait until a worker starts."
    )


def _is_lost(worker: WorkerRow) -> bool:
    return worker.state is WorkerState.GONE and worker.heartbeat_age_seconds < LOST_SECONDS


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _back() -> ResponseReturnValue:
    return redirect(url_for("web.workers"), 303)
