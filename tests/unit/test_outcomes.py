"""From what a handler did to the outcome that is recorded."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from enum import Enum
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
    assert isinstance(outcome.error_details["traceback"], list)


@pytest.mark.parametrize(
    ("errors", "code", "kind"),
    [
        ([PermanentCommandError("GONE")], "GONE", "permanent"),
        ([TransientCommandError("BUSY"), BusinessRuleError("NO")], "NO", "business"),
        ([BusinessRuleError("NO"), PermanentCommandError("GONE")], "GONE", "permanent"),
        ([ValueError("x"), TransientCommandError("BUSY")], "BUSY", "transient"),
        ([TransientCommandError("ONE"), TransientCommandError("TWO")], "ONE", "transient"),
        (
            [ValueError("x"), ExceptionGroup("in", [KeyError("k"), BusinessRuleError("NO")])],
            "NO",
            "business",
        ),
        ([asyncio.CancelledError(), PermanentCommandError("GONE")], "GONE", "permanent"),
        ([SystemExit(3), BusinessRuleError("NO")], "NO", "business"),
        ([SystemExit(3)], "SystemExit", "transient"),
        ([ExceptionGroup("in", [KeyError("k")])], "KeyError", "transient"),
        ([ValueError("x"), KeyError("k")], "ExceptionGroup", "transient"),
    ],
)
def test_the_gravest_error_of_a_group_decides(errors, code, kind):
    outcome = failure(BaseExceptionGroup("unhandled errors in a TaskGroup", errors))

    assert (outcome.error_code, outcome.kind.value) == (code, kind)


def test_a_group_that_nothing_decides_names_its_errors():
    errors = [ValueError("x"), *[KeyError(number) for number in range(9)]]

    message = failure(ExceptionGroup("unhandled", errors)).error_message

    assert message == (
        "unhandled: ValueError: x; KeyError: 0; KeyError: 1; KeyError: 2; KeyError: 3; and 5 more"
    )


def test_a_group_without_end_is_looked_at_within_bounds():
    made: Any = [ValueError("x" * 10_000)] * 20_000
    for _ in range(2000):
        made = [ExceptionGroup("g" * 10_000, made)]

    outcome = failure(made[0])

    assert len(json.dumps(outcome.error_details)) < 20_000
    assert len(outcome.error_message or "") < 4_000


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    secret = "hunter2"
    try:
        assert secret
        raise error from cause
    except type(error) as exc:
        return exc


def test_an_unexpected_error_tells_where_it_came_from_and_its_cause_and_notes():
    error = raised(KeyError("nope"), raised(ValueError("root\0"), raised(OSError("deepest"))))
    error.add_note("while reading \ud800")

    details = failure(error).error_details

    [frame] = details["traceback"]
    assert f'File "{__file__}", line ' in frame
    assert frame.endswith("in raised: raise error from cause")
    assert details["notes"] == ["while reading \ufffd"]
    cause = details["cause"]
    assert (cause["type"], cause["message"], cause["direct"]) == ("ValueError", "root\ufffd", True)
    assert cause["cause"]["message"] == "deepest"
    assert "hunter2" not in json.dumps(details)


def test_what_was_being_handled_is_told_unless_it_is_hidden():
    shown, hidden = KeyError("nope"), KeyError("nope")
    shown.__context__ = hidden.__context__ = ValueError("root")
    hidden.__suppress_context__ = True

    assert failure(shown).error_details["cause"]["direct"] is False
    assert "cause" not in failure(hidden).error_details


def test_our_errors_tell_more_only_where_there_is_more_and_own_details_are_kept():
    cause = ValueError("root")
    details = failure(raised(PermanentCommandError("GONE"), cause)).error_details

    assert details["cause"]["message"] == "root"
    assert failure(raised(PermanentCommandError("GONE"))).error_details is None
    own = failure(raised(PermanentCommandError("GONE", "", {"k": 1}), cause))
    assert own.error_details == {"k": 1}


def test_the_other_errors_of_a_group_are_told_with_the_one_that_decides():
    details = failure(
        ExceptionGroup("two", [raised(ValueError("x")), raised(PermanentCommandError("GONE"))])
    ).error_details

    assert len(details["traceback"]) == 1
    [other] = details["group"]["errors"]
    assert (other["type"], other["message"]) == ("ValueError", "x")
    assert details["group"]["message"] == "two (2 sub-exceptions)"


def test_details_of_an_error_are_bounded_whatever_it_holds():
    def fall(depth: int) -> None:
        fall(depth + 1)

    error: Exception = ValueError("end")
    for _ in range(1000):
        error = raised(ValueError("m" * 100_000), error)
        error.__notes__ = ["n" * 100_000] * 100
    error.__cause__.__cause__.__cause__ = error  # type: ignore[union-attr]
    assert len(json.dumps(failure(error).error_details)) < 20_000
    with pytest.raises(RecursionError) as fallen:
        fall(0)
    assert len(failure(fallen.value).error_details["traceback"]) == 10
    odd = ValueError("x")
    odd.__notes__ = 5  # type: ignore[assignment]
    assert "notes" not in failure(odd).error_details


def test_the_code_of_an_error_may_be_an_enum():
    class Code(Enum):
        GONE = "ACCOUNT_GONE"

    assert failure(PermanentCommandError(Code.GONE)).error_code == "ACCOUNT_GONE"  # type: ignore[arg-type]


def test_a_result_that_no_rule_converts_is_a_permanent_failure():
    outcome = outcomes.success(claimed(), 1500, {"when": [object()]})

    assert (outcome.kind, outcome.error_code) == (OutcomeKind.PERMANENT, "UNSTORABLE_RESULT")
    assert outcome.error_message == (
        "The handler has run, but its result['when'][0] is of the type object,"
        " which JSON cannot hold"
    )


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


def test_data_that_cannot_be_read_is_permanent():
    outcome = outcomes.undecodable(claimed(undecodable="ValueError: too long"), POLICY)

    assert (outcome.kind, outcome.error_code) == (OutcomeKind.PERMANENT, "UNDECODABLE_PAYLOAD")
    assert "ValueError: too long" in (outcome.error_message or "")


def test_an_outcome_that_cannot_be_stored_is_permanent_and_keeps_its_token():
    outcome = outcomes.success(claimed(), 1500, "x")
    replaced = outcomes.unstorable(outcome, "too large", POLICY)

    assert replaced.claimed is outcome.claimed
    assert (replaced.kind, replaced.error_code) == (OutcomeKind.PERMANENT, "UNSTORABLE_RESULT")
