"""What became of operators' actions, in words."""

from __future__ import annotations

from typing import NamedTuple

from app.actions.orders import AMBIGUOUS, NOT_FOUND, Action, Outcome
from app.models.operator_jobs import JobSummary
from app.web.formats import count_text


class Words(NamedTuple):
    """How an action is called."""

    verb: str
    done: str
    icon: str
    tone: str


WORDS = {
    Action.RETRY: Words("Retry", "retried", "retry", "accent"),
    Action.COMPLETE: Words("Complete", "completed", "check", "completed"),
    Action.CANCEL: Words("Cancel", "cancelled", "slash", "cancelled"),
    Action.CANCEL_PENDING: Words("Cancel", "cancelled", "slash", "cancelled"),
    Action.REQUEST_CANCEL: Words("Ask to cancel", "asked to stop", "slash", "cancelled"),
    Action.UNDO_RETRY: Words("Undo the retry of", "back in the queue", "undo", "neutral"),
}
_NO_STATUS = {NOT_FOUND: "not found", AMBIGUOUS: "in several domains"}
"""Why a command was skipped where no status was in the way."""


class JobLooks(NamedTuple):
    """How a job looks in a list."""

    words: Words
    about: str
    """What it was meant for: 1,234 commands."""
    text: str
    state: str
    tone: str
    seen: int


def words_of(action: str) -> Words:
    """How the action of that name is called."""
    return WORDS[Action(action)]


def looks_of(job: JobSummary) -> JobLooks:
    """How *job* looks in a list and on its page."""
    state, tone = {
        "running": ("Running", "progress"),
        "finished": ("Done", "completed"),
        "stopped": ("Stopped", "cancelled"),
    }[job.state]
    if job.undone_at is not None:
        state, tone = "Undone", "neutral"
    elif job.action == Action.RETRY and job.state == "finished":
        tone = "neutral"  # put back in the queue, which says nothing of how they ended
    words = words_of(job.action)
    text = outcome_text(words.done, job.done, job.changed) + _gone_text(job)
    about = commands_text(job.expected, job.expected_is_exact)
    return JobLooks(words, about, text, state, tone, job.seen)


def outcome_text(verb: str, done: int, changed: dict[str, int]) -> str:
    """12 retried, 3 skipped: 2 COMPLETED, 1 CANCELLED"""
    text = f"{done:,} {verb}" if done or not changed else f"None {verb}"
    if changed:
        kinds = sorted(changed.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{count:,} {_NO_STATUS.get(name, name)}" for name, count in kinds)
        text += f", {sum(changed.values()):,} skipped: {named}"
    return text


def _gone_text(job: JobSummary) -> str:
    """. 1,000 of the 8,000 were no longer in the queue when their turn came"""
    if not job.gone:
        return ""
    were, their = ("was", "its") if job.gone == 1 else ("were", "their")
    gone = count_text(job.gone, job.expected_is_exact).capitalize()
    of = f"{job.expected:,}" if job.expected_is_exact else "commands that matched"
    return f". {gone} of the {of} {were} no longer in the queue when {their} turn came"


def undone_text(outcome: Outcome) -> str:
    """What became of taking retries back."""
    text = outcome_text("back in the queue", outcome.done, {})
    if late := sum(outcome.changed.values()):
        return (
            f"{text}, too late for {late:,}." if outcome.done else "Too late: no retry waits now."
        )
    return f"{text}."


def commands_text(count: int, is_exact: bool = True) -> str:
    """1 command, 1,234 commands, all commands that match (more than 10,000)"""
    if not is_exact:
        return f"all commands that match ({count_text(count, is_exact=False)})"
    return "1 command" if count == 1 else f"{count:,} commands"
