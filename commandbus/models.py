"""What the bus knows of commands, as frozen values; the enums mirror those of the database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Any
from uuid import UUID

from commandbus.cursors import encode_cursor


class CommandStatus(StrEnum):
    """Where a command is in its life; all of the last four but IN_TSQ are final."""

    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    IN_TSQ = "IN_TSQ"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether nothing can change the command any more."""
        return self in (CommandStatus.COMPLETED, CommandStatus.FAILED, CommandStatus.CANCELLED)


class AuditEventType(StrEnum):
    """What can happen to a command."""

    SENT = "SENT"
    RECEIVED = "RECEIVED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    RETRY_SCHEDULED = "RETRY_SCHEDULED"
    RETRY_EXHAUSTED = "RETRY_EXHAUSTED"
    MOVED_TO_TSQ = "MOVED_TO_TSQ"
    OPERATOR_RETRY = "OPERATOR_RETRY"
    OPERATOR_RETRY_UNDONE = "OPERATOR_RETRY_UNDONE"
    OPERATOR_CANCEL = "OPERATOR_CANCEL"
    OPERATOR_COMPLETE = "OPERATOR_COMPLETE"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    LATE_RESULT = "LATE_RESULT"
    RELEASED = "RELEASED"
    REPLY_FAILED = "REPLY_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command as its handler sees it."""

    domain: str
    command_id: UUID
    command_type: str
    data: Any
    correlation_id: UUID | None = None
    reply_to: str | None = None
    batch_id: UUID | None = None
    created_at: datetime
    headers: dict[str, Any] = field(default_factory=dict)
    """What goes along with the command and is no part of its content; empty: nothing."""
    lane: str | None = None
    """Commands of one lane run in the order of sending; one at a time, unless set otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord(Command):
    """A command as the database knows it: what was sent, and how it stands."""

    status: CommandStatus
    attempts: int
    max_attempts: int | None
    """The command's own budget; None: the configured one of the worker that claims it."""
    msg_id: int | None
    """The current message, or the last one of an ended command; None while it waits."""
    claim_no: int
    worker_id: int | None
    """Who holds the command, or held it last."""
    result: Any
    last_error_type: str | None
    last_error_code: str | None
    last_error_message: str | None
    updated_at: datetime
    started_at: datetime | None
    """When the latest attempt was claimed."""
    finished_at: datetime | None
    lease_until: datetime | None
    causation_id: UUID | None = None
    """The command whose handler sent this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One step in the life of a command."""

    audit_id: int
    domain: str
    command_id: UUID
    event_type: AuditEventType
    created_at: datetime
    details: dict[str, Any]
    """What belongs to the event: attempt, msg_id, worker_id, errors, operator, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCommand:
    """A command to be sent with ``send_many``; the fields are those of ``CommandBus.send``."""

    command_type: str
    command_id: UUID
    data: Any = field(default_factory=dict)
    correlation_id: UUID | None = None
    reply_to: str | None = None
    max_attempts: int | None = None
    delay: float | timedelta | None = None
    headers: Mapping[str, Any] | None = None
    lane: str | None = None


@dataclass(frozen=True, slots=True)
class SendResult:
    """The answer to a send."""

    command_id: UUID
    msg_id: int | None
    """The message in the queue; None where the command waits for its time or has left the queue."""
    created: bool
    """False where the same command had been sent before, and nothing was sent now."""
    status: CommandStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedCommand:
    """A command that a worker holds."""

    command: Command
    attempt: int
    max_attempts: int
    msg_id: int
    claim_no: int
    undecodable: str | None = None
    """Why ``command.data`` could not be read, where it could not."""

    @property
    def token(self) -> tuple[int, int]:
        """What tells this attempt from every other one of the domain."""
        return self.msg_id, self.claim_no

    @property
    def log_fields(self) -> dict[str, object]:
        """What a log line about this attempt carries."""
        return {
            "command_id": str(self.command.command_id),
            "domain": self.command.domain,
            "command_type": self.command.command_type,
            "attempt": self.attempt,
        }


def first_ids(claimed: Iterable[ClaimedCommand]) -> list[str]:
    """The ids of commands for a log line, which names 20 at most."""
    return [str(each.command.command_id) for each in islice(claimed, 20)]


class OutcomeKind(StrEnum):
    """How an attempt ended."""

    SUCCESS = "success"
    BUSINESS = "business"
    PERMANENT = "permanent"
    TRANSIENT = "transient"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one attempt ended, on its way to the database."""

    claimed: ClaimedCommand
    kind: OutcomeKind
    run_us: int
    """How long the handler ran, in microseconds."""
    result: str = "null"
    """The result as JSON text, cleaned and bounded."""
    error_type: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    error_details: Any = None
    retry_delay_ms: int = 0
    follow_ups: str = ""
    """What the handler sent and published, as JSON; empty: nothing."""
    is_recorded: bool = False
    """Whether it was committed with its handler's transaction."""

    @property
    def size(self) -> int:
        """About so many bytes it takes until it is recorded."""
        return len(self.result) + len(self.follow_ups)


class Verdict(StrEnum):
    """What the database says to an outcome."""

    APPLIED = "applied"
    RECORDED = "recorded"
    LATE = "late"
    UNKNOWN = "unknown"
    LOCKED = "locked"
    """Nothing was changed, since somebody has locked what it needs."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The database's answer to an outcome that did not simply complete its command."""

    command_id: UUID
    claim_no: int
    verdict: Verdict
    status: CommandStatus | None


class OperatorVerdict(StrEnum):
    """What became of an operator's action on one command of a set."""

    DONE = "done"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class OperatorResult:
    """The answer for one command; *status* is the one it has now (None: no such command)."""

    command_id: UUID
    verdict: OperatorVerdict
    status: CommandStatus | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TroubledCommand:
    """A command in the troubleshooting queue."""

    domain: str
    command_id: UUID
    command_type: str
    correlation_id: UUID | None
    batch_id: UUID | None
    attempts: int
    error_type: str
    error_code: str
    error_message: str
    group_id: UUID
    """Commands with the same domain, error code and normalised message share it."""
    created_at: datetime
    entered_at: datetime
    first_failed_at: datetime
    last_failed_at: datetime

    @property
    def cursor(self) -> str:
        """Give it to ``TroubleshootingQueue.list`` for the page that begins after this one."""
        return encode_cursor(self.entered_at, self.command_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The one reply of an ended command, read from a reply queue."""

    msg_id: int
    command_id: UUID
    correlation_id: UUID | None
    domain: str
    command_type: str
    status: CommandStatus
    result: Any
    error: dict[str, Any] | None
    """Of a command that FAILED: its type, code and message."""
    operator: str | None = None
    """Who cancelled the command, where it is CANCELLED."""
    reason: str | None = None
    """Why it was cancelled, where somebody said it."""
    headers: dict[str, Any] = field(default_factory=dict)
    """Those of the command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEvent:
    """An event that was published and waits in the outbox to be handed on."""

    position: int
    """Its place; of events with the same key a later one has a higher number."""
    event_id: UUID
    """The same however often it is handed on, so that receivers can tell."""
    event_type: str
    key: str | None
    data: Any
    headers: dict[str, Any]
    created_at: datetime
    domain: str | None
    command_id: UUID | None
    """The command whose handler published it, in *domain*; None: ``CommandBus.publish`` did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a list, newest first; the page itself is read like a list of its commands."""

    commands: list[CommandRecord]
    next_cursor: str | None
    """Give it as *cursor* for the page after this one; None: this was the last."""

    def __iter__(self) -> Iterator[CommandRecord]:
        return iter(self.commands)

    def __len__(self) -> int:
        return len(self.commands)

    def __getitem__(self, index: int) -> CommandRecord:
        return self.commands[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSettings:
    """What holds for the lanes of a group."""

    max_in_flight: int | None
    """How many commands of the whole group may be on their way at once; None: no limit."""
    weight: float
    """Its share beside other groups."""
    lane_limit: int
    """How many commands of each lane may be on their way at once."""
    on_trouble: str
    """Whether a command in the troubleshooting queue holds its lane ("hold") or not ("skip")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneGroup:
    """A group of lanes as it stands."""

    domain: str
    group: str
    waiting: int
    in_flight: int
    held: int
    """Lanes' commands in the troubleshooting queue that hold their lanes."""
    oldest_at: datetime | None
    """Since when the first of those waits that wait longest; None: nothing waits."""
    oldest_is_exact: bool
    """False: of more than 1,000 lanes the first 1,000 were looked at."""
    rate_per_second: float
    """Ended (or put aside) commands per second, in the last minute."""
    settings: LaneSettings
    is_own: bool
    """Whether the settings are its own, not those of ``*`` or built in."""
    changed_at: datetime | None
    changed_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """The counters of the commands that were sent with one ``batch_id``, exact at this moment."""

    batch_id: UUID
    domain: str
    created_at: datetime
    first_processed_at: datetime | None
    last_processed_at: datetime | None
    counts: dict[CommandStatus, int]
    sent: int
    processed: int
    """Commands that a worker brought to an end or to the troubleshooting queue."""
    retried: int
    wait_ms: Percentiles
    run_ms: Percentiles
    total_ms: Percentiles

    @property
    def open(self) -> int:
        """How many are still on their way."""
        return self.counts[CommandStatus.PENDING] + self.counts[CommandStatus.IN_PROGRESS]


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of a domain, or of one command type of it."""

    pause_id: int
    domain: str
    command_type: str | None
    """None: the whole domain."""
    reason: str
    paused_by: str
    paused_at: datetime
    ends_at: datetime | None
    """When it ends by itself; None: when somebody resumes it."""
    ended_at: datetime | None
    """None: it is in force, or its time has just run out."""
    ended_by: str | None
    """Who resumed it; None: its time was over."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of durations in milliseconds, within 2 %; None where nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None
