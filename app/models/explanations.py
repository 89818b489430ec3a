"""Why a command is where it is, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from app.models.lanes import MOST_BEFORE, LanePlace
from app.models.trail import Troubled
from commandbus.models import CommandStatus

LONGEST_MESSAGE = 300
"""Characters of an error's message that the sentence quotes; the error itself shows the rest."""
SHOWN_VERSIONS = 4
_CLOSE = timedelta(hours=12)


class Heartbeat(StrEnum):
    """What is known of the worker that holds a command."""

    ALIVE = "alive"
    LATE = "late"
    GONE = "gone"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Holder:
    """The worker that holds a command, or held it last."""

    name: str
    heartbeat: Heartbeat
    heartbeat_age_seconds: float
    runs_it: bool | None = None
    """Whether the command was among those that ran at its last heartbeat; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The facts from which the sentence is derived."""

    now: datetime
    domain: str
    command_type: str
    status: CommandStatus
    attempts: int
    budget: int | None
    """The budget of the running attempt or, while it waits, of the next one; None: not known."""
    is_last_attempt: bool = False
    """Whether a claim after the running attempt would find no attempt left, as of now."""
    troubled: Troubled | None = None
    """Why it was moved to the troubleshooting queue, as recorded."""
    cancel_requested_by: str | None = None
    """Who asks to cancel it while it runs."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    lease_until: datetime | None = None
    due_at: datetime | None = None
    waits_for: str | None = None
    """SCHEDULED, RETRY or OPERATOR_RETRY where it waits for its time."""
    is_suspect: bool = False
    place: LanePlace | None = None
    """Where it waits for its turn in its lane."""
    holder: Holder | None = None
    workers_alive: int = 0
    """Of this domain."""
    workers_late: int = 0
    """Those whose heartbeat is overdue."""
    parked: str | None = None
    """NO_HANDLER where workers have put it aside that have no handler for its type."""
    paused_by: str | None = None
    """Who has paused its domain or its type; None: neither is paused."""
    pause_reason: str = ""
    pause_ends_at: datetime | None = None
    is_domain_paused: bool = False
    is_known: bool | None = None
    """Whether a running worker has a handler for its type; None: some do not say."""
    versions: Sequence[str] = ()
    """The versions of the application that the running workers run."""
    error_code: str | None = None
    error_message: str | None = None
    operator: str | None = None
    """Who completed or cancelled it, where an operator did."""
    reason: str | None = None


def explain(facts: Facts) -> str:
    """One sentence that says why the command is where it is, and what it waits for."""
    match facts.status:
        case CommandStatus.PENDING:
            return _pending(facts)
        case CommandStatus.IN_PROGRESS:
            asked = facts.cancel_requested_by
            return _in_progress(facts) + (f" {asked} asks to cancel it." if asked else "")
        case CommandStatus.COMPLETED:
            if facts.operator is not None:
                return f"Completed manually by {facts.operator}{_at(facts.finished_at, facts.now)}."
            return f"Completed on attempt {facts.attempts}{_at(facts.finished_at, facts.now)}."
        case CommandStatus.FAILED:
            return f"A business rule refused it: {_error(facts)}. This is final."
        case CommandStatus.IN_TSQ:
            return f"{_why_troubled(facts)}: {_error(facts)}. It needs an operator."
        case CommandStatus.CANCELLED:
            because = f": {facts.reason}" if facts.reason else ""
            return f"{facts.operator or 'An operator'} cancelled it{because}."


def _pending(facts: Facts) -> str:
    attempt = _attempt(facts.attempts + 1, facts.budget)
    if facts.due_at is not None and facts.due_at > facts.now:
        until = when(facts.due_at, facts.now)
        if facts.waits_for == "OPERATOR_RETRY":
            return f"An operator retried it; this can be undone until {until}."
        if facts.waits_for == "SCHEDULED":
            return f"It is scheduled for {until}."
        if _is_spent(facts):
            return f"{_spent(facts)} after {until}. Last error: {_error(facts)}."
        return (
            f"Attempt {facts.attempts} failed: {_error(facts)}."
            f" {attempt.capitalize()} is due at {until}."
        )
    if facts.paused_by is not None:
        what = f"domain {facts.domain}" if facts.is_domain_paused else facts.command_type
        until = ""
        if facts.pause_ends_at is not None:
            until = f" until {when(facts.pause_ends_at, facts.now)}"
        reason = facts.pause_reason.rstrip(". ")
        return f"{facts.paused_by} paused {what}{until}: {reason}. It waits for {attempt}."
    if facts.place is not None and (why := _in_lane(facts.place)):
        return why
    if facts.workers_alive and _is_spent(facts):
        return f"{_spent(facts)}."
    if facts.workers_alive == 0 and facts.workers_late:
        is_one = facts.workers_late == 1
        late = "1 worker" if is_one else f"{facts.workers_late} workers"
        overdue = "its heartbeat is overdue" if is_one else "their heartbeats are overdue"
        return (
            f"Not started: {late} for domain {facts.domain} {'was' if is_one else 'were'} running a"
            f" moment ago, but {overdue}. It waits for {attempt}."
        )
    if facts.workers_alive == 0:
        return (
            f"{attempt.capitalize()} has not started: no worker is running for domain"
            f" {facts.domain}."
        )
    if facts.is_known is False:
        return (
            f"No running worker knows {facts.command_type}; {_running_versions(facts)}."
            f" It waits for one that does, for {attempt}."
        )
    if facts.parked is not None:
        return f"It waits for a free worker that knows {facts.command_type}, for {attempt}."
    if facts.is_suspect:
        return (
            f"Its worker stopped responding while it ran, so {attempt} will run alone, on a worker"
            " that runs nothing else."
        )
    workers = "1 worker" if facts.workers_alive == 1 else f"{facts.workers_alive} workers"
    are = "is" if facts.workers_alive == 1 else "are"
    return f"It is queued for {attempt}; {workers} for domain {facts.domain} {are} running."


def _running_versions(facts: Facts) -> str:
    """Which workers run instead."""
    if not facts.versions:
        return "1 worker runs" if facts.workers_alive == 1 else f"{facts.workers_alive} workers run"
    shown = list(facts.versions[:SHOWN_VERSIONS])
    if len(facts.versions) > SHOWN_VERSIONS:
        shown[-1:] = [f"{len(facts.versions) - SHOWN_VERSIONS + 1} others"]
    names = " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
    return f"workers of version {names} run"


def _in_lane(place: LanePlace) -> str:
    """What it waits for in its lane; empty: only for the next claim."""
    if place.behind is not None and (place.taken or place.waiting_before):
        is_cut = place.waiting_before >= MOST_BEFORE
        number = place.waiting_before + place.taken + 1
        ordinal = f"at least {number:,}th" if is_cut else _ordinal(number)
        doing = _DOING.get(place.behind_status) if place.behind_status else None
        which = f", which {doing}" if doing else ""
        if place.taken < place.lane_limit and place.waiting_before < place.lane_limit - place.taken:
            return ""
        return f"It is {ordinal} in lane {place.lane}, behind {place.behind}{which}."
    if place.max_in_flight is not None and place.group_in_flight >= place.max_in_flight:
        return (
            f"It is first in lane {place.lane}, and waits for its group, of which at most"
            f" {place.max_in_flight} may be on their way at once."
        )
    return ""


_DOING = {
    CommandStatus.PENDING: "waits to be run",
    CommandStatus.IN_PROGRESS: "runs",
    CommandStatus.IN_TSQ: "is in the troubleshooting queue",
}


def _ordinal(number: int) -> str:
    names = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
    return names[number - 1] if number <= len(names) else f"{number:,}th"


def _in_progress(facts: Facts) -> str:
    attempt = _attempt(facts.attempts, facts.budget)
    if facts.holder is None:
        return f"A worker that is no longer known runs {attempt}{_lease(facts)}."
    name = facts.holder.name
    if facts.holder.heartbeat in (Heartbeat.GONE, Heartbeat.STOPPED, Heartbeat.LATE):
        if facts.holder.heartbeat is Heartbeat.STOPPED:
            return f"Worker {name} stopped during {attempt}{_lease(facts)}."
        silent = _duration(facts.holder.heartbeat_age_seconds)
        return f"Worker {name} stopped responding {silent} ago, during {attempt}{_lease(facts)}."
    since = ""
    if facts.started_at is not None:
        since = f" for {_duration((facts.now - facts.started_at).total_seconds())}"
    if facts.holder.runs_it is False:
        return (
            f"Worker {name} has held {attempt}{since} and had not started it at its last heartbeat."
        )
    if facts.lease_until is not None and facts.lease_until <= facts.now:
        return (
            f"Worker {name} has been running {attempt}{since}, longer than its lease;"
            f" the next claim {_delivers(facts)} unless its outcome is recorded first."
        )
    return f"Worker {name} has been running {attempt}{since}."


def _lease(facts: Facts) -> str:
    if facts.lease_until is None:
        return ""
    if facts.lease_until <= facts.now:
        return f". Its lease has ended, so the next claim {_delivers(facts)}"
    until = when(facts.lease_until, facts.now)
    return f". Its lease ends at {until}, and the next claim after that {_delivers(facts)}"


def _delivers(facts: Facts) -> str:
    """What a claim does with a command whose attempt had no outcome."""
    if facts.is_last_attempt:
        return "moves it to the troubleshooting queue"
    return "delivers it again"


def _attempt(number: int, budget: int | None) -> str:
    return f"attempt {number}" if budget is None else f"attempt {number} of {budget}"


def _is_spent(facts: Facts) -> bool:
    """Whether a waiting command has no attempt left under today's budget."""
    return facts.budget is not None and facts.attempts >= facts.budget


def _spent(facts: Facts) -> str:
    attempts = "1 attempt" if facts.attempts == 1 else f"{facts.attempts} attempts"
    return (
        f"It has had {attempts}, and its budget is now {facts.budget}: the next worker that takes"
        " it moves it to the troubleshooting queue"
    )


def _why_troubled(facts: Facts) -> str:
    troubled = facts.troubled
    if troubled is None:
        # The reason was not recorded; only the numbers can tell.
        troubled = Troubled(
            facts.budget is not None and facts.attempts >= facts.budget, facts.budget
        )
    if troubled.is_unhandled:
        return f"No worker that knows {facts.command_type} ran in time"
    if not troubled.is_exhausted:
        return f"Attempt {facts.attempts} failed with a permanent error"
    if troubled.budget is not None and facts.attempts > troubled.budget:
        attempts = "1 attempt" if facts.attempts == 1 else f"{facts.attempts} attempts"
        return f"{attempts} failed, and its budget was {troubled.budget} by then"
    if facts.attempts == 1:
        return "Its only attempt failed"
    return f"All {facts.attempts} attempts failed"


def _error(facts: Facts) -> str:
    if facts.error_code is None:
        return "no error was recorded"
    message = (facts.error_message or "").rstrip(". ")
    if len(message) > LONGEST_MESSAGE:
        message = message[:LONGEST_MESSAGE].rstrip() + "…"
    return f"{facts.error_code} ({message})" if message else facts.error_code


def _at(moment: datetime | None, now: datetime) -> str:
    return "" if moment is None else f" at {when(moment, now)}"


def when(moment: datetime, now: datetime) -> str:
    """A moment as the sentence names it, with its day unless it is close."""
    return clock(moment) if abs(moment - now) < _CLOSE else day_and_clock(moment)


def clock(moment: datetime) -> str:
    """The time of day."""
    return moment.astimezone(UTC).strftime("%H:%M:%S UTC")


def day_and_clock(moment: datetime) -> str:
    """The day and the time of day."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _duration(seconds: float) -> str:
    seconds = max(seconds, 0)
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
