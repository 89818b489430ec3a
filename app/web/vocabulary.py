"""The words of the pages: how statuses and audit events look, and what special terms mean."""

from __future__ import annotations

from typing import NamedTuple

from flask import g


class Status(NamedTuple):
    """How a command's status looks. The tone is a CSS class, `tone-…`."""

    value: str
    label: str
    icon: str
    tone: str
    meaning: str


class Event(NamedTuple):
    """How an audit event looks."""

    value: str
    label: str
    icon: str
    tone: str


class Term(NamedTuple):
    """A special term, explained behind a question mark."""

    name: str
    meaning: str


STATUSES = {
    status.value: status
    for status in (
        Status("PENDING", "Pending", "clock", "pending", "Waiting to run"),
        Status("IN_PROGRESS", "In progress", "play", "progress", "Taken by a worker"),
        Status("COMPLETED", "Completed", "check", "completed", "Done"),
        Status("FAILED", "Failed", "x", "failed", "Refused by a rule"),
        Status("IN_TSQ", "In TSQ", "alert", "tsq", "Needs an operator"),
        Status("CANCELLED", "Cancelled", "slash", "cancelled", "By an operator"),
    )
}

EVENTS = {
    event.value: event
    for event in (
        Event("SENT", "Sent", "send", "neutral"),
        Event("RECEIVED", "Received", "play", "progress"),
        Event("COMPLETED", "Completed", "check", "completed"),
        Event("FAILED", "Failed", "x", "failed"),
        Event("RETRY_SCHEDULED", "Retry scheduled", "clock", "pending"),
        Event("RETRY_EXHAUSTED", "Retries exhausted", "battery", "tsq"),
        Event("MOVED_TO_TSQ", "Moved to the TSQ", "alert", "tsq"),
        Event("OPERATOR_RETRY", "Retried by operator", "retry", "accent"),
        Event("OPERATOR_RETRY_UNDONE", "Retry undone", "undo", "neutral"),
        Event("OPERATOR_CANCEL", "Cancelled by operator", "slash", "cancelled"),
        Event("OPERATOR_COMPLETE", "Completed by operator", "check", "completed"),
        Event("LEASE_EXPIRED", "Lease expired", "hourglass", "tsq"),
        Event("LATE_RESULT", "Late result ignored", "history", "neutral"),
        Event("RELEASED", "Released by worker", "undo", "neutral"),
        Event("REPLY_FAILED", "Reply failed", "x", "failed"),
    )
}

TERMS = {
    "backlog": Term(
        "queue depth",
        "The backlog: commands that are due and that no worker has taken yet, also those that wait"
        " in lanes, for the end of a pause, or for a handler. Delayed commands count from the"
        " moment they are due.",
    ),
    "budget": Term(
        "the budget of attempts",
        "How many attempts a command has. When they are used up without success, the command goes"
        " to the troubleshooting queue.",
    ),
    "in_flight": Term(
        "busy",
        "Commands in flight: a worker has taken them and runs them. Each worker runs at most as"
        " many at once as its concurrency allows.",
    ),
    "lease": Term(
        "a lease",
        "A worker holds a command for the time of its lease; some handlers renew it while they"
        " run. If it ends without a result, the command is delivered again while attempts remain.",
    ),
    "p95": Term(
        "p50, p95 and p99",
        "95 of 100 commands took the time of p95 or less. p50 is the median; only 1 of 100 took"
        " longer than p99.",
    ),
    "tsq": Term(
        "TSQ",
        "The troubleshooting queue. No automatic retry helps these commands: their attempts are"
        " used up, or the error is permanent. An operator retries, completes or cancels them.",
    ),
}


def explained(name: str) -> Term:
    """The term that a page explains; the page then loads the library that places tooltips."""
    g.has_tooltips = True
    return TERMS[name]


def has_tooltips() -> bool:
    """Whether the page that is being rendered has explained a term so far."""
    return bool(g.get("has_tooltips", False))


def status_of(value: str) -> Status:
    """The look of a status; one that this version does not know is shown by its own name."""
    return STATUSES.get(value) or Status(value, _words(value), "circle", "neutral", "")


def event_of(value: str) -> Event:
    return EVENTS.get(value) or Event(value, _words(value), "circle", "neutral")


def _words(value: str) -> str:
    return value.replace("_", " ").capitalize()
