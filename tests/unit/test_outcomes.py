"""From what a handler did to the outcome that is recorded."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from commandbus import (
    BusinessRuleError,
    Command,
    PermanentCommandError,
    RetryPolicy,
    TransientCommandError,
    outcomes,
)
from commandbus.models import ClaimedCommand, Outcome, OutcomeKind
from commandbus.payload import MAX_TEXT

POLICY = RetryPolicy(base_delay_ms=100, jitter=0)


def claimed(attempt: int = 1, **fields: Any) -> ClaimedCommand:
    command = Command(
        domain="test",
        command_id=UUID(int=1),
        command_type="DoIt",
        data={},
        created_at=datetime.now(UTC),
    )
    given = {"command": command, "attempt": attempt, "max_attempts": 3, "msg_id": 5, "claim_no": 7}
    return ClaimedCommand(**{**given, **fields})


def failure(error: BaseException, attempt: int = 1) -> Outcome:
    return outcomes.failure(claimed(attempt), 1000, error, POLICY)


def test_success_carries_the_result_as_json():
    outcome = outcomes.success(claimed(), 1500, {"a": [1, None]})

    assert (outcome.kind, outcome.run_us) == (OutcomeKind.SUCCESS, 1500)
    assert outcome.result == '{"a":[1,null]}'


@pytest.mark.parametrize(
    ("error_class", "kind"),
    [
        (BusinessRuleError, OutcomeKind.BUSINESS),
        (PermanentCommandError, OutcomeKind.PERMANENT),
        (TransientCommandError, OutcomeKind.TRANSIENT),
    ],
)
def test_our_errors_say_what_they_are(error_class, kind):
    outcome = failure(error_class("A_CODE", "what happened", {"k": 1}))

    assert outcome.kind is kind
    assert outcome.error_type == kind.value.upper()
    assert (outcome.error_code, outcome.error_message) == ("A_CODE", "what happened")
    assert outcome.error_details == {"k": 1}


def test_our_errors_need_no_arguments():
    outcome = failure(PermanentCommandError())

    assert (outcome.error_code, outcome.error_message) == ("PERMANENT", "")


class CustomError(TransientCommandError):
    """Says less to its base class than it should."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __str__(self) -> str:
        return f"no {self.what}"


def test_a_subclass_that_forgot_its_base_class_is_still_what_it_is():
    outcome = failure(CustomError("stock"))

    assert outcome.kind is OutcomeKind.TRANSIENT
    assert (outcome.error_code, outcome.error_message) == ("TRANSIENT", "no stock")


class PoisonedError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        SystemExit(3),
        asyncio.CancelledError(),
        PoisonedError(),
        ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
        RecursionError(),
        StopAsyncIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_other_error_is_transient_with_its_type_as_code(error: BaseException):
    outcome = failure(error)

    assert outcome.kind is OutcomeKind.TRANSIENT
    assert outcome.error_type == "UNEXPECTED"
    assert outcome.error_code == type(error).__name__
    assert isinstance(outcome.error_message, str)


def test_what_an_error_says_is_cleaned_and_bounded():
    outcome = failure(
        TransientCommandError("C" * 1000 + "\0", "\0\ud800" + "m" * 10_000, {"k": float("nan")})
    )

    assert outcome.error_code is not None
    assert outcome.error_message is not None
    assert len(outcome.error_code) == 200
    assert len(outcome.error_message) == MAX_TEXT
    assert outcome.error_message.startswith("\ufffd\ufffdmm")
    assert outcome.error_details == {"k": None}


@pytest.mark.parametrize(("attempt", "delay"), [(1, 100), (2, 200), (3, 400)])
def test_the_delay_is_the_policys_for_this_attempt(attempt: int, delay: int):
    assert failure(ValueError(), attempt).retry_delay_ms == delay


def test_a_type_without_a_handler_is_tried_again_and_says_so():
    outcome = outcomes.no_handler(claimed(), POLICY)

    assert (outcome.kind, outcome.error_code) == (OutcomeKind.TRANSIENT, "NO_HANDLER")
    assert outcome.error_message == 'No handler is registered for "DoIt" in domain "test"'


def test_data_that_cannot_be_read_is_permanent():
    outcome = outcomes.undecodable(claimed(undecodable="ValueError: too long"), POLICY)

    assert (outcome.kind, outcome.error_code) == (OutcomeKind.PERMANENT, "UNDECODABLE_PAYLOAD")
    assert "ValueError: too long" in (outcome.error_message or "")


def test_an_outcome_that_cannot_be_stored_is_permanent_and_keeps_its_token():
    outcome = outcomes.success(claimed(), 1500, "x")
    replaced = outcomes.unstorable(outcome, "too large", POLICY)

    assert replaced.claimed is outcome.claimed
    assert (replaced.kind, replaced.error_code) == (OutcomeKind.PERMANENT, "UNSTORABLE_RESULT")
