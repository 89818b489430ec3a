"""A command bus on PostgreSQL and PGMQ.

Send with :class:`CommandBus`, handle with :func:`handler` (or a :class:`HandlerRegistry`) and
:class:`Worker`, look after what failed with :class:`TroubleshootingQueue`, delete what has ended
with :class:`Pruner`; :func:`setup_database` prepares a database. Names that are not listed here are
internal, except in the modules that docs/library.md lists.
"""

from commandbus.bus import CommandBus
from commandbus.errors import (
    BusinessRuleError,
    CommandBusError,
    CommandNotFoundError,
    DatabaseSetupError,
    DomainInUseError,
    DuplicateCommandError,
    HandlerAlreadyRegisteredError,
    HandlerError,
    InvalidCommandError,
    InvalidDomainError,
    InvalidStateError,
    LeaseLostError,
    MigrationError,
    MissingQueueError,
    NoAnswerError,
    NotMigratedError,
    PermanentCommandError,
    TransactionRolledBackError,
    TransientCommandError,
    TransitionHookError,
    UnknownDomainError,
    UnknownReplyQueueError,
    UnsuitableConnectionError,
    UnsuitableDatabaseError,
)
from commandbus.handlers import HandlerContext, HandlerRegistry, default_registry, handler
from commandbus.handoff import FollowUpId
from commandbus.ids import uuid7
from commandbus.migrating import DatabaseSetup, setup_database
from commandbus.models import (
    AuditEvent,
    AuditEventType,
    BatchProgress,
    Command,
    CommandRecord,
    CommandStatus,
    LaneGroup,
    LaneSettings,
    NewCommand,
    OperatorResult,
    OperatorVerdict,
    OutboxEvent,
    Page,
    Pause,
    Percentiles,
    Reply,
    SendResult,
    TroubledCommand,
)
from commandbus.ops import TroubleshootingQueue
from commandbus.pauses import Pauses
from commandbus.pools import create_pool
from commandbus.retention import Pruned, Pruner, RetentionRule
from commandbus.retry import RetryPolicy
from commandbus.version import VERSION
from commandbus.worker import Worker

__all__ = [
    "VERSION",
    "AuditEvent",
    "AuditEventType",
    "BatchProgress",
    "BusinessRuleError",
    "Command",
    "CommandBus",
    "CommandBusError",
    "CommandNotFoundError",
    "CommandRecord",
    "CommandStatus",
    "DatabaseSetup",
    "DatabaseSetupError",
    "DomainInUseError",
    "DuplicateCommandError",
    "FollowUpId",
    "HandlerAlreadyRegisteredError",
    "HandlerContext",
    "HandlerError",
    "HandlerRegistry",
    "InvalidCommandError",
    "InvalidDomainError",
    "InvalidStateError",
    "LaneGroup",
    "LaneSettings",
    "LeaseLostError",
    "MigrationError",
    "MissingQueueError",
    "NewCommand",
    "NoAnswerError",
    "NotMigratedError",
    "OperatorResult",
    "OperatorVerdict",
    "OutboxEvent",
    "Page",
    "Pause",
    "Pauses",
    "Percentiles",
    "PermanentCommandError",
    "Pruned",
    "Pruner",
    "Reply",
    "RetentionRule",
    "RetryPolicy",
    "SendResult",
    "TransactionRolledBackError",
    "TransientCommandError",
    "TransitionHookError",
    "TroubledCommand",
    "TroubleshootingQueue",
    "UnknownDomainError",
    "UnknownReplyQueueError",
    "UnsuitableConnectionError",
    "UnsuitableDatabaseError",
    "Worker",
    "create_pool",
    "default_registry",
    "handler",
    "setup_database",
    "uuid7",
]
