"""What goes in and out of the API; the OpenAPI document is generated from these models."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.api.routing import WHOLE, Answer, Body, Id, Moment, Query
from app.behaviors import Behavior, BehaviorDistribution
from app.bulk import MAX_COUNT
from app.models.paging import TOTAL_LIMIT
from commandbus.bus import MAX_ATTEMPTS_LIMIT
from commandbus.models import AuditEventType, CommandStatus

MAX_IDS = 500

DomainName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Search = Annotated[str, StringConstraints(max_length=200)]
CursorText = Annotated[str, StringConstraints(min_length=1, max_length=200)]
OperatorName = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Limit = Annotated[int, Field(ge=1, le=100), WHOLE]
Offset = Annotated[int, Field(ge=0, le=TOTAL_LIMIT), WHOLE]
MaxAttempts = Annotated[int, Field(ge=1, le=MAX_ATTEMPTS_LIMIT)]

DEFAULT_OPERATOR = "api"


class DomainQuery(Query):
    """Which domain is meant where an id exists in several."""

    domain: DomainName | None = None


class PageQuery(Query):
    """Which part of a list."""

    limit: Limit = 20
    offset: Offset = 0
    cursor: CursorText | None = Field(None, description="The next_cursor of a page before")


def require_order(first: datetime | None, second: datetime | None, names: str) -> None:
    """Raises PydanticCustomError where a period ends before it begins."""
    if first is not None and second is not None and first > second:
        raise PydanticCustomError("reversed", "{names} are reversed", {"names": names})


class CommandsQuery(PageQuery):
    """The filters of the list of commands."""

    status: CommandStatus | None = None
    domain: DomainName | None = None
    command_type: Name | None = None
    created_after: Moment | None = Field(None, description="Inclusive")
    created_before: Moment | None = Field(None, description="Exclusive")
    q: Search | None = Field(
        None, description="A command id or its beginning, a correlation id, or an error code"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        names = "created_after and created_before"
        require_order(self.created_after, self.created_before, names)
        return self


class TsqQuery(PageQuery):
    """The filters of the troubleshooting queue."""

    domain: DomainName | None = None
    command_type: Name | None = None
    error_code: Name | None = None
    group_id: Id | None = None
    q: Search | None = Field(
        None,
        description="An id or its beginning, a correlation id, or a part of the code or message",
    )


class AuditQuery(Query):
    """The filters of the search over all events."""

    event_type: AuditEventType | None = None
    domain: DomainName | None = None
    since: Moment | None = Field(None, description="Inclusive")
    until: Moment | None = Field(None, description="Exclusive")
    limit: Limit = 20
    cursor: CursorText | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        require_order(self.since, self.until, "since and until")
        return self


class SendCommand(Body):
    """One test command to send."""

    behavior: Behavior
    payload: dict[str, Any] = Field(default_factory=dict)
    max_attempts: MaxAttempts | None = None
    command_id: Id | None = None
    correlation_id: Id | None = None
    reply_to: Name | None = Field(None, description="An existing queue, for the one reply")


class Empty(Body):
    """An empty object."""


class BulkCommands(Body):
    """Test commands to generate."""

    count: int = Field(ge=1, le=MAX_COUNT)
    behavior: Behavior | None = None
    behavior_distribution: BehaviorDistribution | None = None
    delay_ms: int | None = Field(None, ge=0, le=3_600_000)
    max_attempts: MaxAttempts | None = None
    name: Name | None = Field(None, description="What to call the run")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.behavior is not None and self.behavior_distribution is not None:
            raise PydanticCustomError(
                "behavior_twice", "Give behavior or behavior_distribution, not both"
            )
        if self.delay_ms is not None and self.behavior is not None:  # noqa: SIM102
            if "execution_time_ms" in self.behavior.model_fields_set:
                raise PydanticCustomError(
                    "execution_time_twice", "Give delay_ms or the behavior's own time, not both"
                )
        return self


class CancelCommand(Body):
    """Why, and by whom."""

    reason: Reason
    operator: OperatorName = DEFAULT_OPERATOR


class RetryCommand(Body):
    """By whom, and when."""

    operator: OperatorName = DEFAULT_OPERATOR
    delay_seconds: float = Field(0, ge=0, le=3600, description="How long it can be undone")


class UndoRetry(Body):
    """By whom."""

    operator: OperatorName = DEFAULT_OPERATOR


class CompleteCommand(Body):
    """The result that the command gets, and by whom."""

    result_data: Any = None
    notes: Reason | None = None
    operator: OperatorName = DEFAULT_OPERATOR


class TsqFilter(Body):
    """Every command in the troubleshooting queue that matches."""

    domain: DomainName | None = None
    command_type: Name | None = None
    error_code: Name | None = None
    group_id: Id | None = None
    q: Search | None = None


class BulkChoice(Body):
    """Which commands: by id, or all that match a filter."""

    command_ids: list[Id] | None = Field(None, min_length=1, max_length=MAX_IDS)
    filter: TsqFilter | None = None
    operator: OperatorName = DEFAULT_OPERATOR

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if (self.command_ids is None) == (self.filter is None):
            raise PydanticCustomError("one_choice", "Give either command_ids or filter")
        return self


class BulkRetry(BulkChoice):
    """Retry several commands."""

    delay_seconds: float = Field(0, ge=0, le=3600)


class BulkCancel(BulkChoice):
    """Cancel several commands."""

    reason: Reason


class BulkComplete(BulkChoice):
    """Complete several commands with one result."""

    result_data: Any = None
    notes: Reason | None = None


# Answers


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
    last_error_type: str | None
    last_error_code: str | None
    last_error_message: str | None


class CommandList(Answer):
    """One page of commands, newest first."""

    commands: list[CommandItem]
    total: int
    total_is_exact: bool
    limit: int
    offset: int
    next_cursor: str | None
    previous_cursor: str | None


class TimingItem(Answer):
    """Where the time of a command went, in milliseconds."""

    waiting_ms: float | None
    running_ms: float | None
    total_ms: float | None


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


class CommandDetailItem(CommandItem):
    """Everything about one command."""

    payload: Any
    behavior: Any
    result: Any
    timing: TimingItem
    started_at: datetime | None
    finished_at: datetime | None
    lease_until: datetime | None
    due_at: datetime | None
    msg_id: int | None
    worker_id: int | None
    run_id: UUID | None = Field(validation_alias="batch_id")
    reply_to: str | None
    attempt_list: list[AttemptItem]
    explanation: str


class TsqItem(Answer):
    """A command in the troubleshooting queue."""

    command_id: UUID
    domain: str
    command_type: str
    correlation_id: UUID | None
    group_id: UUID
    attempts: int
    max_attempts: int | None
    created_at: datetime
    entered_at: datetime
    first_failed_at: datetime
    last_failed_at: datetime
    last_error_type: str
    last_error_code: str
    last_error_message: str
    payload: Any


class TsqList(Answer):
    """One page of the troubleshooting queue, the latest arrivals first."""

    commands: list[TsqItem]
    total: int
    total_is_exact: bool
    limit: int
    offset: int
    next_cursor: str | None
    previous_cursor: str | None


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
