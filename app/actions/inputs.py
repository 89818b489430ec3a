"""What callers may say, as models: the API reads bodies and queries with them, pages their forms.

The OpenAPI document is generated from these and from app.api.answers.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.actions.moments import MomentError, parse_moment
from app.actions.orders import MAX_REASON
from app.actions.troubled import AT_ONCE
from app.loadtest.generating import MAX_COUNT
from app.loadtest.runs import LONGEST_NAME, is_name
from app.models.paging import LARGEST_ID, TOTAL_LIMIT
from app.models.search_texts import LONGEST_TEXT
from app.settings.configuration import MAX_WIDTH, RetryConfig, WorkerConfig
from app.settings.options import options_of
from app.testcommand.behaviors import (
    LONGEST_QUEUE_NAME,
    MAX_EXECUTION_MS,
    Behavior,
    BehaviorDistribution,
)
from commandbus.bus import MAX_ATTEMPTS_LIMIT, checked_headers
from commandbus.errors import InvalidCommandError
from commandbus.lanes import MAX_IN_FLIGHT, MAX_LANE_LIMIT, WEIGHTS
from commandbus.models import AuditEventType, CommandStatus
from commandbus.names import DOMAIN_PATTERN, MAX_LANE

UUID_PATTERN = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_WHOLE = re.compile(r"-?[0-9]{1,18}", re.ASCII)


def _canonical(value: Any) -> Any:
    if isinstance(value, str):
        if re.fullmatch(UUID_PATTERN, value) is None:
            raise PydanticCustomError(
                "uuid_not_canonical", "Must be a UUID in lower case with hyphens"
            )
        return UUID(value)
    return value


def _moment(value: Any) -> Any:
    try:
        return parse_moment(value if isinstance(value, str) else "")
    except MomentError as exc:
        raise PydanticCustomError(exc.code, "{text}", {"text": str(exc)}) from exc


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        if _WHOLE.fullmatch(value) is None:
            raise PydanticCustomError("not_a_whole_number", "Must be a whole number")
        return int(value)
    return value


Id = Annotated[UUID, BeforeValidator(_canonical), WithJsonSchema({"type": "string", "format": "uuid"})]  # fmt: skip  # noqa: E501
"""An id in its canonical form."""
Moment = Annotated[datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})]  # fmt: skip  # noqa: E501
"""A time with its zone."""
WHOLE = BeforeValidator(_whole)
"""Stands behind the bounds of a whole number in a query string."""


class Body(BaseModel):
    """The fields of a request's body; other fields and types are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _absent_instead_of_null(schema: dict[str, Any]) -> None:
    """A query string cannot hold null: what may be None is not there then."""
    for field in schema.get("properties", {}).values():
        choices = field.get("anyOf", ())
        if {"type": "null"} in choices:
            [choice] = (each for each in choices if each != {"type": "null"})
            del field["anyOf"], field["default"]
            field.update(choice)


class Query(BaseModel):
    """What a query string may hold; each name once."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra=_absent_instead_of_null
    )


def _run_name(text: str) -> str:
    if not is_name(text):
        raise PydanticCustomError("name_not_printable", "Must be printable, on one line")
    return text


DomainName = Annotated[str, StringConstraints(pattern=f"^{DOMAIN_PATTERN.pattern}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
QueueName = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_QUEUE_NAME)]
RunName = Annotated[
    str, StringConstraints(min_length=1, max_length=LONGEST_NAME), AfterValidator(_run_name)
]
Search = Annotated[str, StringConstraints(max_length=LONGEST_TEXT)]
CursorText = Annotated[str, StringConstraints(min_length=1, max_length=200)]
OperatorName = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=MAX_REASON)]
Limit = Annotated[int, Field(ge=1, le=100), WHOLE]
Offset = Annotated[int, Field(ge=0, le=TOTAL_LIMIT), WHOLE]
MaxAttempts = Annotated[int, Field(ge=1, le=MAX_ATTEMPTS_LIMIT)]
GroupName = Annotated[str, StringConstraints(max_length=MAX_LANE, pattern="^[^/]*$")]
UndoDelay = Annotated[float, Field(ge=0, le=3600, description="How long it can be undone")]


def _headers(headers: dict[str, Any]) -> dict[str, Any]:
    try:
        return checked_headers(headers)
    except InvalidCommandError as exc:
        raise PydanticCustomError("headers", "{reason}", {"reason": str(exc)}) from exc


Headers = Annotated[dict[str, Any], AfterValidator(_headers)]

DEFAULT_OPERATOR = "api"
MAX_PAUSE_SECONDS = 31_536_000


class DomainQuery(Query):
    """Which domain is meant where an id exists in several."""

    domain: DomainName | None = None


class PageQuery(Query):
    """Which part of a list."""

    limit: Limit = 20
    offset: Offset = 0
    cursor: CursorText | None = Field(None, description="The next_cursor of a page before")

    def filters(self) -> dict[str, Any]:
        """What the query asks for, whichever page."""
        return self.model_dump(exclude=set(PageQuery.model_fields))


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
        None,
        description="A command id or its beginning, a correlation id, or an error code: of commands"
        " that failed, were cancelled, are in the troubleshooting queue or wait for a retry",
    )
    run_id: Id | None = Field(None, description="Of one load-test run")
    lane: Name | None = Field(None, description="Of one lane")

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
    """One test command to send; its fields are the arguments of `send_test_command`."""

    behavior: Behavior
    payload: dict[str, Any] = Field(default_factory=dict)
    max_attempts: MaxAttempts | None = None
    command_id: Id | None = None
    correlation_id: Id | None = None
    reply_to: QueueName | None = Field(None, description="An existing queue, for the one reply")
    headers: Headers | None = Field(
        None, description="What goes along with it, up to its reply; at most 8,192 bytes as JSON"
    )
    lane: Name | None = Field(
        None, description='Commands of one lane run in order; its group stands before the first "/"'
    )


class Empty(Body):
    """An empty object."""


class BulkCommands(Body):
    """Test commands to generate."""

    count: int = Field(ge=1, le=MAX_COUNT)
    behavior: Behavior | None = None
    behavior_distribution: BehaviorDistribution | None = None
    delay_ms: int | None = Field(
        None,
        ge=0,
        le=MAX_EXECUTION_MS,
        description="How long each command runs; without it not at all, but those of the type"
        " timeout longer than the visibility timeout",
    )
    max_attempts: MaxAttempts | None = None
    lanes: int = Field(0, ge=0, le=MAX_COUNT, description="In turns into so many lanes; 0: none")
    groups: int = Field(1, ge=1, le=MAX_COUNT, description="In so many groups")
    name: RunName | None = Field(None, description="What to call the run; printable, on one line")
    operator: OperatorName = DEFAULT_OPERATOR

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


class LoadTest(BulkCommands):
    """A load test as its form orders it."""

    timeout_ms: int | None = Field(None, ge=0, le=MAX_EXECUTION_MS)


class CancelCommand(Body):
    """Why, and by whom."""

    reason: Reason
    operator: OperatorName = DEFAULT_OPERATOR


class HeldLanesQuery(DomainQuery):
    """Which lanes, and how many."""

    limit: Limit = 100


class LaneSettingsChange(Body):
    """The settings to change; what is left out stays."""

    domain: DomainName = "test"
    group: GroupName = Field(
        description='What stands before the first "/" of a lane; "" for lanes without one; "*" for'
        " all groups without settings of their own"
    )
    max_in_flight: Annotated[int, Field(ge=0, le=MAX_IN_FLIGHT)] | None = Field(
        None, description="Commands of the group at once; 0: nothing new starts; null: no limit"
    )
    weight: float = Field(1, ge=WEIGHTS[0], le=WEIGHTS[1], description="Share beside other groups")
    lane_limit: int = Field(1, ge=1, le=MAX_LANE_LIMIT, description="Commands of a lane at once")
    on_trouble: Literal["hold", "skip"] = Field(
        "hold", description="Whether a command in the troubleshooting queue holds its lane"
    )
    operator: OperatorName = DEFAULT_OPERATOR


class LaneSettingsReset(Body):
    """The group whose own settings are taken back."""

    domain: DomainName = "test"
    group: GroupName


class NewPause(Body):
    """What to pause, why, and for how long."""

    domain: DomainName = "test"
    command_type: Name | None = Field(None, description="Without it, the whole domain")
    reason: Reason
    operator: OperatorName = DEFAULT_OPERATOR
    seconds: Annotated[float, Field(gt=0, le=MAX_PAUSE_SECONDS)] | None = Field(
        None, description="Without it, until somebody resumes it"
    )


class ResumeQuery(Query):
    """By whom."""

    operator: OperatorName = DEFAULT_OPERATOR


class RetryCommand(Body):
    """By whom, and when."""

    operator: OperatorName = DEFAULT_OPERATOR
    delay_seconds: UndoDelay = 0


class ByWhom(Body):
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


class GroupsQuery(DomainQuery):
    """Which of the groups, and how many."""

    limit: Limit = 50


class RejectedQuery(Query):
    """A page of rejected messages: the latest, or those before one that is known."""

    limit: Limit = 20
    before: Annotated[int, Field(ge=1, le=LARGEST_ID), WHOLE] | None = None


class JobsQuery(Query):
    """A page of jobs: the latest, or those before one that is known."""

    limit: Limit = 20
    before: Id | None = None


class BulkChoice(Body):
    """Which commands: by id, or all that match a filter."""

    command_ids: list[Id] | None = Field(
        None,
        min_length=1,
        max_length=AT_ONCE,
        json_schema_extra={"example": ["0193e0a0-0000-7000-8000-000000000001"]},
    )
    filter: TsqFilter | None = None
    operator: OperatorName = DEFAULT_OPERATOR

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if (self.command_ids is None) == (self.filter is None):
            raise PydanticCustomError("one_choice", "Give either command_ids or filter")
        return self


class BulkRetry(BulkChoice):
    """Retry several commands."""

    delay_seconds: UndoDelay = 0


class BulkCancel(BulkChoice):
    """Cancel several commands."""

    reason: Reason


class BulkComplete(BulkChoice):
    """Complete several commands with one result."""

    result_data: Any = None
    notes: Reason | None = None


def _section(name: str, doc: str, config: type) -> type[BaseModel]:
    """A model of the options that *config* declares, each with its range; all may be left out."""
    fields: dict[str, Any] = {
        option.name: (
            int if option.whole else float,
            Field(option.default, ge=option.low, le=option.high, description=option.help),
        )
        for option in options_of(config)
    }
    return create_model(name, __base__=Body, __doc__=doc, **fields)


WorkerSection = _section("WorkerSection", "How a worker works.", WorkerConfig)
RetrySection = _section("RetrySection", "How failed commands are retried.", RetryConfig)


class ConfigChange(Body):
    """The values to change; what is left out stays."""

    worker: WorkerSection | None = Field(  # type: ignore[valid-type]
        None, json_schema_extra={"example": {"concurrency": 8}}
    )
    retry: RetrySection | None = None  # type: ignore[valid-type]
    version: int | None = Field(
        None, ge=1, description="The version that was read; 412 where it is no longer the current"
    )
    operator: OperatorName = DEFAULT_OPERATOR


class StartWorker(Body):
    """A worker process to start on this host."""

    concurrency: int | None = Field(None, ge=1, le=MAX_WIDTH, description="Default: the stored one")
