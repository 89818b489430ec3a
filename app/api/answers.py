"""What the API answers. With app.actions.inputs, the OpenAPI document is generated from it."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from app.api.routing import Answer
from commandbus.models import AuditEventType, CommandStatus


class FieldError(Answer):
    """One value that was refused."""

    field: str
    code: str
    message: str


class Problem(Answer):
    """Why a request was not served (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldError]


class CommandState(Answer):
    """A command and the status that it has now."""

    command_id: UUID
    status: CommandStatus


class CreatedCommand(CommandState):
    """A command that was sent."""

    msg_id: int | None
    behavior: dict[str, Any]
    payload: dict[str, Any]
    correlation_id: UUID | None


class CreatedCommands(Answer):
    """What was generated."""

    created: int
    command_ids: list[UUID] = Field(description="The first 100")
    run_id: UUID
    generation_time_ms: int
    queue_time_ms: int
    behavior_distribution: dict[str, int | float]
    name: str | None


class StartedRun(Answer):
    """Commands that are being generated; GET /stats/load-test follows them."""

    run_id: UUID
    count: int
    behavior_distribution: dict[str, int | float]
    name: str | None


class CommandItem(Answer):
    """A command as lists show it."""

    command_id: UUID
    domain: str
    command_type: str
    status: CommandStatus
    attempts: int
    max_attempts: int | None = Field(description="Its own budget; null: the configured one")
    created_at: datetime
    updated_at: datetime
    correlation_id: UUID | None
    lane: str | None
    last_error_type: str | None
    last_error_code: str | None
    last_error_message: str | None


class PageOfList(Answer):
    """Which part of a list an answer holds."""

    total: int
    total_is_exact: bool
    limit: int
    offset: int
    next_cursor: str | None
    previous_cursor: str | None


class CommandList(PageOfList):
    """One page of commands, newest first."""

    commands: list[CommandItem]


class TimingItem(Answer):
    """Where the time of a command went, in milliseconds."""

    waiting_ms: float | None = Field(
        description="Before the first attempt, null until it begins; once the command has ended,"
        " all of its time without running, that in the troubleshooting queue included"
    )
    running_ms: float | None = Field(
        description="The attempts that have ended, together; null until the first has"
    )
    total_ms: float | None = Field(
        description="From sent to ended, time in the troubleshooting queue included; null until"
        " it has ended, which in the troubleshooting queue it has not"
    )


class AttemptItem(Answer):
    """One run of the handler."""

    number: int
    cycle: int
    worker_id: int | None
    started_at: datetime
    ended_at: datetime | None
    duration_ms: float | None
    outcome: str
    error_type: str | None
    error_code: str | None
    error_message: str | None
    error_details: Any = Field(
        description="What the error of the handler gave; else the last frames of its traceback,"
        " its cause and notes; null where there is neither"
    )


class RelatedItem(Answer):
    """A command that another one's handler sent, or that sent one."""

    command_id: UUID
    domain: str
    command_type: str
    status: CommandStatus
    created_at: datetime
    causation_id: UUID | None


class EffectsItem(Answer):
    """What a command's handler sent with its success, oldest first."""

    commands: list[RelatedItem] = Field(validation_alias="rows", description="The first 100")
    is_complete: bool


class BranchItem(RelatedItem):
    """A command of a conversation."""

    depth: int = Field(description="How many commands above it led to it")


class ConversationItem(Answer):
    """The commands of one correlation id, each below the one whose handler sent it."""

    correlation_id: UUID
    commands: list[BranchItem] = Field(description="The oldest 1,000, in the order of the tree")
    is_complete: bool


class CommandDetailItem(CommandItem):
    """Everything about one command."""

    payload: Any
    headers: dict[str, Any] | None
    causation_id: UUID | None = Field(description="The command whose handler sent it")
    effects: EffectsItem
    behavior: Any
    result: Any
    timing: TimingItem
    started_at: datetime | None
    finished_at: datetime | None
    lease_until: datetime | None
    due_at: datetime | None
    parked: str | None = Field(
        description="NO_HANDLER while it waits for a worker that has a handler for its type;"
        " PAUSED while its type is paused"
    )
    parked_at: datetime | None
    msg_id: int | None
    worker_id: int | None
    run_id: UUID | None = Field(validation_alias="batch_id")
    reply_to: str | None
    budget: int | None = Field(
        description="How many attempts it could have when it was last claimed; while it is PENDING,"
        " how many it would have now; null: not known"
    )
    attempt_list: list[AttemptItem]
    explanation: str


class TsqItem(Answer):
    """A command in the troubleshooting queue."""

    command_id: UUID
    domain: str
    command_type: str
    status: CommandStatus
    correlation_id: UUID | None
    group_id: UUID
    attempts: int
    max_attempts: int | None
    created_at: datetime
    updated_at: datetime
    entered_at: datetime
    lane: str | None
    waiting_behind: int = Field(
        description="How many wait in the lane that it holds; 1000 means: at least"
    )
    first_failed_at: datetime
    last_failed_at: datetime
    last_error_type: str
    last_error_code: str
    last_error_message: str
    payload: Any


class TsqList(PageOfList):
    """One page of the troubleshooting queue, the latest arrivals first."""

    commands: list[TsqItem]


class GroupItem(Answer):
    """Failures that look alike."""

    group_id: UUID
    domain: str
    error_type: str
    error_code: str
    message: str
    in_tsq: int
    entered: int
    first_seen_at: datetime
    last_seen_at: datetime
    trend: list[int] = Field(description="Arrivals in each of the last 24 hours")


class GroupList(Answer):
    """The groups of the troubleshooting queue, the largest first."""

    groups: list[GroupItem]
    total: int = Field(description="How many groups have commands in the queue")


class RejectedItem(Answer):
    """A message that no command explains."""

    rejected_id: int
    domain: str
    queue: str
    msg_id: int
    command_id: UUID | None
    reason: str
    message: str | None
    rejected_at: datetime


class RejectedList(Answer):
    """Messages that no command explains, the latest first."""

    messages: list[RejectedItem]


class Skipped(Answer):
    """A command of a set on which nothing was done."""

    command_id: UUID
    reason: str = Field(description="not_found, ambiguous_command or invalid_state")
    current_status: CommandStatus | None


class BulkRetried(Answer):
    """What became of a set."""

    retried: int
    skipped: list[Skipped] = Field(description="The first 100")
    skipped_count: int


class BulkCancelled(Answer):
    """What became of a set."""

    cancelled: int
    skipped: list[Skipped]
    skipped_count: int


class BulkCompleted(Answer):
    """What became of a set."""

    completed: int
    skipped: list[Skipped]
    skipped_count: int


class JobItem(Answer):
    """An operator's action on one command or many, and how far it is."""

    job_id: UUID
    action: str = Field(
        description="retry, complete, cancel, cancel_pending, request_cancel or undo_retry"
    )
    operator: str
    state: str = Field(description="running, finished or stopped")
    expected: int = Field(
        description="How many commands it was meant for when it began: exactly, or at least"
    )
    expected_is_exact: bool
    done: int
    changed: dict[str, int] = Field(
        description="How many were skipped, by the status they had; NOT_FOUND and AMBIGUOUS for ids"
        " that name no command or several"
    )
    gone: int | None = Field(
        description="How many of the expected ones were no longer in the queue when their turn"
        " came, and are not counted in changed; a lower bound where expected is not exact;"
        " null unless the job has finished"
    )
    created_at: datetime
    finished_at: datetime | None
    undone_at: datetime | None
    undone_by: str | None


class JobDetailItem(JobItem):
    """A job with the commands that it skipped."""

    skipped: list[Skipped] = Field(description="The first 100")


class JobList(Answer):
    """What operators did, the latest first."""

    jobs: list[JobItem]


class EventItem(Answer):
    """One step in the life of a command."""

    audit_id: int
    event_type: AuditEventType
    timestamp: datetime
    details: dict[str, Any]


class FoundEvent(EventItem):
    """An event with the command that it happened to."""

    command_id: UUID
    domain: str


class EventList(Answer):
    """One page of events, newest first."""

    events: list[FoundEvent]
    next_cursor: str | None


class Trail(Answer):
    """Everything that happened to a command, oldest first."""

    command_id: UUID
    domain: str
    command_type: str
    current_status: CommandStatus
    events: list[EventItem]
    total_duration_ms: float | None = Field(description="From the first event to the last")
