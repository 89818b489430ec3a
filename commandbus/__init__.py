"""A command bus on PostgreSQL and PGMQ.

Send with :class:`CommandBus`, handle with :class:`Worker` and :class:`HandlerRegistry`, look after
what failed with :class:`TroubleshootingQueue`, delete what has ended with :class:`Pruner`. What is
not named here is not for use outside.
"""

from commandbus.bus import CommandBus
from commandbus.errors import (
    BusinessRuleError,
    CommandBusError,
    CommandNotFoundError,
    DuplicateCommandError,
    HandlerAlreadyRegisteredError,
    HandlerError,
    InvalidCommandError,
    InvalidDomainError,
    InvalidStateError,
    LeaseLostError,
    NoAnswerError,
    NotMigratedError,
    PermanentCommandError,
    TransientCommandError,
    UnknownDomainError,
    UnknownReplyQueueError,
    UnsuitableConnectionError,
    UnsuitableDatabaseError,
)
from commandbus.handlers import HandlerContext, HandlerRegistry
from commandbus.ids import uuid7
from commandbus.models import (
    AuditEvent,
    AuditEventType,
    BatchProgress,
    Command,
    CommandRecord,
    CommandStatus,
    NewCommand,
    OperatorResult,
    OperatorVerdict,
    Page,
    Percentiles,
    Reply,
    SendResult,
    TroubledCommand,
)
from commandbus.ops import TroubleshootingQueue
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
    "DuplicateCommandError",
    "HandlerAlreadyRegisteredError",
    "HandlerContext",
    "HandlerError",
    "HandlerRegistry",
    "InvalidCommandError",
    "InvalidDomainError",
    "InvalidStateError",
    "LeaseLostError",
    "NewCommand",
    "NoAnswerError",
    "NotMigratedError",
    "OperatorResult",
    "OperatorVerdict",
    "Page",
    "Percentiles",
    "PermanentCommandError",
    "Pruned",
    "Pruner",
    "Reply",
    "RetentionRule",
    "RetryPolicy",
    "SendResult",
    "TransientCommandError",
    "TroubledCommand",
    "TroubleshootingQueue",
    "UnknownDomainError",
    "UnknownReplyQueueError",
    "UnsuitableConnectionError",
    "UnsuitableDatabaseError",
    "Worker",
    "create_pool",
    "uuid7",
]
