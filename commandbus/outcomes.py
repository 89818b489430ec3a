"""From what a handler did to the outcome that is recorded. No I/O."""

from __future__ import annotations

from commandbus.errors import (
    BusinessRuleError,
    HandlerError,
    PermanentCommandError,
    TransientCommandError,
)
from commandbus.models import ClaimedCommand, Outcome, OutcomeKind
from commandbus.payload import clean_text, plain_json, result_json
from commandbus.retry import RetryPolicy

NO_HANDLER = "NO_HANDLER"
UNDECODABLE_PAYLOAD = "UNDECODABLE_PAYLOAD"
UNSTORABLE_RESULT = "UNSTORABLE_RESULT"
HANDLER_TIMEOUT = "HANDLER_TIMEOUT"

_KINDS: tuple[tuple[type[HandlerError], OutcomeKind], ...] = (
    (BusinessRuleError, OutcomeKind.BUSINESS),
    (PermanentCommandError, OutcomeKind.PERMANENT),
    (TransientCommandError, OutcomeKind.TRANSIENT),
)


def success(claimed: ClaimedCommand, run_us: int, result: object) -> Outcome:
    """The handler returned *result*."""
    return Outcome(
        claimed=claimed, kind=OutcomeKind.SUCCESS, run_us=run_us, result=result_json(result)
    )


def failure(
    claimed: ClaimedCommand, run_us: int, error: BaseException, policy: RetryPolicy
) -> Outcome:
    """The handler raised *error*; one that is not ours counts as transient, its type as code."""
    for error_class, kind in _KINDS:
        if isinstance(error, error_class):
            return _failed(
                claimed,
                run_us,
                kind,
                policy,
                error_type=kind.value.upper(),
                # A subclass may have forgotten to call the constructor that sets these.
                code=getattr(error, "code", error_class.default_code),
                message=getattr(error, "message", error),
                details=getattr(error, "details", None),
            )
    return _failed(
        claimed,
        run_us,
        OutcomeKind.TRANSIENT,
        policy,
        error_type="UNEXPECTED",
        code=type(error).__name__,
        message=error,
    )


def timed_out(claimed: ClaimedCommand, run_us: int, seconds: float, policy: RetryPolicy) -> Outcome:
    """The handler was cancelled after the *seconds* that it had."""
    return _failed(
        claimed,
        run_us,
        OutcomeKind.TRANSIENT,
        policy,
        error_type="TRANSIENT",
        code=HANDLER_TIMEOUT,
        message=f"The handler had not ended after {seconds:g} s",
    )


def no_handler(claimed: ClaimedCommand, policy: RetryPolicy) -> Outcome:
    """This worker has no handler for the command's type; another, or a later version, may have."""
    command = claimed.command
    return _failed(
        claimed,
        0,
        OutcomeKind.TRANSIENT,
        policy,
        error_type="TRANSIENT",
        code=NO_HANDLER,
        message=f'No handler is registered for "{command.command_type}"'
        f' in domain "{command.domain}"',
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


def _failed(
    claimed: ClaimedCommand,
    run_us: int,
    kind: OutcomeKind,
    policy: RetryPolicy,
    *,
    error_type: str,
    code: object,
    message: object,
    details: object = None,
) -> Outcome:
    return Outcome(
        claimed=claimed,
        kind=kind,
        run_us=run_us,
        error_type=error_type,
        error_code=clean_text(code, 200) or error_type,
        error_message=clean_text(message),
        error_details=None if details is None else plain_json(details),
        retry_delay_ms=policy.jittered_delay_ms(claimed.attempt),
    )
