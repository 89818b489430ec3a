"""From what a handler did to the outcome that is recorded. No I/O."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Any

from commandbus.errors import (
    BusinessRuleError,
    HandlerError,
    PermanentCommandError,
    TransientCommandError,
    one_line,
)
from commandbus.failures import (
    deciding,
    describe,
    explains_more,
    frames_of,
    message_of,
    type_name,
)
from commandbus.handoff import FollowUps
from commandbus.models import ClaimedCommand, Outcome, OutcomeKind
from commandbus.payload import UnstorableValueError, clean_text, plain_json, result_json
from commandbus.retry import RetryPolicy

UNDECODABLE_PAYLOAD = "UNDECODABLE_PAYLOAD"
UNSTORABLE_RESULT = "UNSTORABLE_RESULT"
HANDLER_TIMEOUT = "HANDLER_TIMEOUT"
TRANSACTION_UNDONE = "TRANSACTION_UNDONE"
TRANSACTION_FAULT = "TRANSACTION_FAULT"
FOLLOW_UP_REFUSED = "FOLLOW_UP_REFUSED"

_KINDS: tuple[tuple[type[HandlerError], OutcomeKind], ...] = (
    (BusinessRuleError, OutcomeKind.BUSINESS),
    (PermanentCommandError, OutcomeKind.PERMANENT),
    (TransientCommandError, OutcomeKind.TRANSIENT),
)


def success(
    claimed: ClaimedCommand, run_us: int, result: object, follow_ups: FollowUps | None = None
) -> Outcome:
    """The handler returned *result*; one that cannot be stored is a permanent failure."""
    try:
        text = result_json(result)
    except UnstorableValueError as exc:
        return _failed(
            claimed,
            run_us,
            OutcomeKind.PERMANENT,
            None,
            error_type="PERMANENT",
            code=UNSTORABLE_RESULT,
            message=f"The handler has run, but its {exc}",
        )
    if not follow_ups:
        return Outcome(claimed=claimed, kind=OutcomeKind.SUCCESS, run_us=run_us, result=text)
    return Outcome(
        claimed=claimed,
        kind=OutcomeKind.SUCCESS,
        run_us=run_us,
        result=text,
        follow_ups=follow_ups.json(),
    )


def failure(
    claimed: ClaimedCommand, run_us: int, error: BaseException, policy: RetryPolicy
) -> Outcome:
    """The handler raised *error*, or a group in which an error decides.

    One that is not ours counts as transient, its type as code. Details tell where it came from,
    unless it has its own.
    """
    decided = deciding(error)
    for error_class, kind in _KINDS:
        if isinstance(decided, error_class):
            details = getattr(decided, "details", None)
            if details is not None:
                details = plain_json(details)
            elif error is not decided or explains_more(decided):
                details = describe(error, decided)
            code = getattr(decided, "code", error_class.default_code)
            return _failed(
                claimed,
                run_us,
                kind,
                policy,
                error_type=kind.value.upper(),
                # A subclass may have forgotten to call the constructor that sets these.
                code=code.value if isinstance(code, Enum) else code,
                message=getattr(decided, "message", decided),
                details=details,
            )
    return _failed(
        claimed,
        run_us,
        OutcomeKind.TRANSIENT,
        policy,
        error_type="UNEXPECTED",
        code=type(decided).__name__,
        message=message_of(decided),
        details=describe(error, decided),
    )


def unreadable_error(
    claimed: ClaimedCommand,
    run_us: int,
    error: BaseException,
    raised: BaseException,
    policy: RetryPolicy,
) -> Outcome:
    """The handler raised *error*, and reading what that says raised *raised*: its class decides."""
    kind, error_type, code = OutcomeKind.TRANSIENT, "UNEXPECTED", type_name(error)
    for error_class, known in _KINDS:
        if issubclass(type(error), error_class):
            kind, error_type, code = known, known.value.upper(), error_class.default_code
            break
    return _failed(
        claimed,
        run_us,
        kind,
        policy,
        error_type=error_type,
        code=code,
        message=f"{type_name(error)}, which cannot be read: that raises {type_name(raised)}",
        details={"traceback": frames_of(error)},
    )


def unreadable_result(claimed: ClaimedCommand, run_us: int, raised: BaseException) -> Outcome:
    """The handler returned something whose own methods raised *raised*: a permanent failure."""
    return _failed(
        claimed,
        run_us,
        OutcomeKind.PERMANENT,
        None,
        error_type="PERMANENT",
        code=UNSTORABLE_RESULT,
        message=f"The handler has run, but reading its result raises {type_name(raised)}",
    )


def timed_out(
    claimed: ClaimedCommand,
    run_us: int,
    seconds: float,
    policy: RetryPolicy,
    error: TimeoutError | None = None,
) -> Outcome:
    """The handler was cancelled after the *seconds* that it had; *error* tells where it was."""
    cancelled = None if error is None else error.__cause__
    return _failed(
        claimed,
        run_us,
        OutcomeKind.TRANSIENT,
        policy,
        error_type="TRANSIENT",
        code=HANDLER_TIMEOUT,
        message=f"The handler had not ended after {seconds:g} s",
        details=None if cancelled is None else describe(cancelled, cancelled),
    )


def undecodable(claimed: ClaimedCommand, policy: RetryPolicy) -> Outcome:
    """The command's data cannot be read."""
    return _failed(
        claimed,
        0,
        OutcomeKind.PERMANENT,
        policy,
        error_type="PERMANENT",
        code=UNDECODABLE_PAYLOAD,
        message=f"The payload cannot be decoded: {claimed.undecodable}",
    )


def unstorable(outcome: Outcome, reason: str, policy: RetryPolicy) -> Outcome:
    """The database refused to store the outcome itself."""
    return _failed(
        outcome.claimed,
        outcome.run_us,
        OutcomeKind.PERMANENT,
        policy,
        error_type="PERMANENT",
        code=UNSTORABLE_RESULT,
        message=f"The outcome ({outcome.kind}) cannot be stored: {reason}",
    )


def recorded(outcome: Outcome) -> Outcome:
    """The outcome, which is committed with its handler's transaction."""
    return replace(outcome, is_recorded=True)


def undone(outcome: Outcome, reason: str, policy: RetryPolicy) -> Outcome:
    """The handler returned, but its transaction cannot be committed."""
    return _failed(
        outcome.claimed,
        outcome.run_us,
        OutcomeKind.TRANSIENT,
        policy,
        error_type="TRANSIENT",
        code=TRANSACTION_UNDONE,
        message=f"The handler returned, but {reason}, so nothing of it is saved",
    )


def lease_lost(outcome: Outcome, policy: RetryPolicy) -> Outcome:
    """The attempt was over when the handler's transaction was to be committed; it is undone."""
    return undone(outcome, "its attempt was over", policy)


def transaction_fault(
    claimed: ClaimedCommand, run_us: int, fault: Exception, policy: RetryPolicy
) -> Outcome:
    """Faults of the database have undone the handler's transaction, again and again."""
    return _failed(
        claimed,
        run_us,
        OutcomeKind.TRANSIENT,
        policy,
        error_type="TRANSIENT",
        code=TRANSACTION_FAULT,
        message="Its transaction was undone by a fault each time it ran here, the last one: "
        + one_line(fault.__cause__ or fault),
    )


def follow_up_refused(outcome: Outcome, reason: str) -> Outcome:
    """What the handler sends is refused, so its transaction is undone."""
    return _failed(
        outcome.claimed,
        outcome.run_us,
        OutcomeKind.PERMANENT,
        None,
        error_type="PERMANENT",
        code=FOLLOW_UP_REFUSED,
        message=f"The handler has run, but what it sends is refused: {reason}",
    )


def completed_json(outcome: Outcome) -> str:
    """A success as the settling functions take it."""
    claimed = outcome.claimed
    return (
        f'{{"command_id":"{claimed.command.command_id}","msg_id":{claimed.msg_id},'
        f'"claim_no":{claimed.claim_no},"run_us":{outcome.run_us},"result":{outcome.result}'
        f"{',' if outcome.follow_ups else ''}{outcome.follow_ups}}}"
    )


def _failed(
    claimed: ClaimedCommand,
    run_us: int,
    kind: OutcomeKind,
    policy: RetryPolicy | None,
    *,
    error_type: str,
    code: object,
    message: object,
    details: Any = None,
) -> Outcome:
    return Outcome(
        claimed=claimed,
        kind=kind,
        run_us=run_us,
        error_type=error_type,
        error_code=clean_text(code, 200) or error_type,
        error_message=clean_text(message),
        error_details=details,
        retry_delay_ms=0 if policy is None else policy.jittered_delay_ms(claimed.attempt),
    )
