"""How statuses and audit events are shown: one word, icon and tone for each, everywhere."""

from __future__ import annotations

from typing import NamedTuple


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


STATUSES = {
    status.value: status
    for status in (
        Status("PENDING", "Pending", "clock", "pending", "Waiting to run"),
        Status("IN_PROGRESS", "In progress", "play", "progress", "Taken by a worker"),
        Status("COMPLETED", "Completed", "check", "completed", "Done"),
        Status("FAILED", "Failed", "x", "failed", "Refused by a business rule"),
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


def status_of(value: str) -> Status:
    """The look of a status; one that this version does not know is shown by its own name."""
    return STATUSES.get(value) or Status(value, _words(value), "circle", "neutral", "")


def event_of(value: str) -> Event:
    return EVENTS.get(value) or Event(value, _words(value), "circle", "neutral")


def _words(value: str) -> str:
    return value.replace("_", " ").capitalize()
