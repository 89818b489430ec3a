"""The dashboard: how the bus is doing, at a glance."""

from __future__ import annotations

from functools import cached_property

from flask import flash, redirect, url_for
from flask.typing import ResponseReturnValue

from app.actions import load_tests
from app.actions import workers as local_workers
from app.database.health import Check, findings, look
from app.loadtest.generating import BulkOrder
from app.loadtest.runs import Origin, RunState
from app.models import CommandRow, count_by_status, send_test_command, statistics
from app.models.load_test import LoadTest, latest_load_test
from app.models.load_test_runs import RunRow
from app.models.parked import PauseRow, Unhandled, pauses, unhandled
from app.models.workers import WorkerCounts, count_workers
from app.server import access
from app.server.clock import now
from app.server.errors import recent_faults
from app.server.portal import call, current_bus, current_portal
from app.testcommand.behaviors import DEFAULT_BEHAVIOR
from app.web import bp
from app.web.remembered import current_operator
from app.web.rendering import PageContext, render_page

HISTORY_SECONDS = 15 * 60
HISTORY_STEP_SECONDS = 15
QUICK_LOAD = 100
IDLE_SECONDS, BUSY_SECONDS = 5, 1
"""How often the page refreshes by itself: at rest, and while a load test runs."""


@bp.get("/")
@access.viewer
def dashboard() -> ResponseReturnValue:
    return render_page(
        "pages/dashboard.html",
        Dashboard(),
        partials=(
            "database_findings",
            "dashboard_held",
            "dashboard_counts",
            "dashboard_run",
            "dashboard_activity",
        ),
    )


@bp.post("/quick-send")
@access.operator
def quick_send() -> ResponseReturnValue:
    """Send one command that succeeds."""
    sent = call(send_test_command, current_bus(), DEFAULT_BEHAVIOR, {})
    flash(f"Command {sent.command_id} was sent.", "success")
    return redirect(url_for("web.dashboard"), 303)


@bp.post("/quick-load")
@access.operator
def quick_load() -> ResponseReturnValue:
    """Generate a hundred commands that succeed."""
    order = BulkOrder(count=QUICK_LOAD)
    load_tests.begin(order, origin=Origin.PAGE, started_by=current_operator())
    flash(f"{QUICK_LOAD} commands were sent.", "success")
    return redirect(url_for("web.dashboard"), 303)


class Dashboard(PageContext):
    """The values of the dashboard and its parts."""

    @property
    def findings(self) -> list[Check]:
        """Problems of the database that an operator should know."""
        return [*findings(call(look, current_portal().pool)), *recent_faults()]

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many commands are in each status."""
        current_portal().fold_soon()
        return {status.value: count for status, count in count_by_status().items()}

    @cached_property
    def last_minute(self) -> statistics.Throughput:
        """What was processed in the last minute."""
        return statistics.throughput(statistics.RATE_WINDOW_SECONDS)

    @cached_property
    def backlog(self) -> statistics.Backlog:
        """What waits in the queues for a worker."""
        return statistics.backlog()

    @cached_property
    def workers(self) -> WorkerCounts:
        """How many workers run."""
        return count_workers()

    @cached_property
    def without_handler(self) -> list[Unhandled]:
        """What waits because no running worker has a handler for it."""
        return unhandled()

    @cached_property
    def paused(self) -> list[PauseRow]:
        """What is paused now."""
        return pauses()

    @property
    def can_start(self) -> bool:
        """Whether this server starts workers."""
        return local_workers.can_start()

    @cached_property
    def run(self) -> LoadTest | None:
        """The latest load test, while some of its commands are still to end."""
        run = latest_load_test()
        if run.recorded is not None and run.recorded.is_silent(now()):
            load_tests.settle()  # its process has died, perhaps; the next refresh knows
        return run if run.pending else None

    @property
    def recorded(self) -> RunRow | None:
        """That load test as it was ordered; None for a batch that is no load test."""
        return None if self.run is None else self.run.recorded

    @property
    def still_generated(self) -> bool:
        """Whether some of its commands are still to be sent."""
        return self.recorded is not None and self.recorded.state == RunState.GENERATING

    @property
    def live_seconds(self) -> int:
        """How often the page refreshes."""
        return IDLE_SECONDS if self.run is None else BUSY_SECONDS

    @cached_property
    def _history(self) -> list[statistics.HistoryPoint]:
        return statistics.history(HISTORY_SECONDS, HISTORY_STEP_SECONDS)

    @property
    def has_history(self) -> bool:
        """Whether anything was processed in the time that the charts show."""
        return any(point.processed for point in self._history)

    @property
    def times(self) -> list[int]:
        """When each step of the charts begins."""
        return [int(point.at.timestamp()) for point in self._history]

    @property
    def rates(self) -> list[float]:
        """Commands processed per second, by step."""
        return [round(point.processed / HISTORY_STEP_SECONDS, 2) for point in self._history]

    @property
    def latencies_p50(self) -> list[float | None]:
        """The median from sent to finished, by step."""
        return [point.total.p50 for point in self._history]

    @property
    def latencies_p95(self) -> list[float | None]:
        """The 95th percentile from sent to finished, by step."""
        return [point.total.p95 for point in self._history]

    @cached_property
    def recent_created(self) -> list[CommandRow]:
        """The commands created last."""
        return statistics.recent_created()

    @cached_property
    def recent_completed(self) -> list[CommandRow]:
        """The commands completed last."""
        return statistics.recent_completed()

    @property
    def has_completed(self) -> bool:
        """Whether any command that is kept has completed."""
        return bool(self.recent_completed) or self.counts["COMPLETED"] > 0
