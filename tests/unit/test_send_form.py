"""The forms of the send page, without a browser."""

from __future__ import annotations

from typing import Any

import pytest

from app.testcommand.behaviors import BehaviorType, default_timeout_ms
from app.web.forms import Form
from app.web.send_form import read_load, read_single
from load_test import _parser, _plan


def load_form(**values: Any) -> Form:
    return Form({"count": "1000", "mix": "custom", **values})


def test_percentages_with_decimals_add_up_exactly() -> None:
    form = load_form(share_success="33.3", share_timeout="33,3", share_fail_business="33.4")

    order = read_load(form, timeout_ms=35_000)

    assert form.errors == {}
    assert order is not None
    assert list(order.types().values()) == [333, 333, 334]


@pytest.mark.parametrize(
    ("share", "said"),
    [
        ("-1", "Must be at least 0"),
        ("100.1", "Must be at most 100"),
        ("1e400", "Must be a number"),
        ("nan", "Must be a number"),
        ("٣", "Must be a number"),
        ("1_0", "Must be a number"),
    ],
)
def test_a_percentage_that_the_api_refuses_is_refused_at_its_field(share: str, said: str) -> None:
    form = load_form(share_success="100", share_timeout=share)

    assert read_load(form, timeout_ms=35_000) is None
    assert form.errors == {"share_timeout": said}


@pytest.mark.parametrize(("given", "runs"), [("", 35_000), ("0", 35_000), ("2000", 2_000)])
def test_a_timeout_without_a_time_of_its_own_outlasts_the_lease(given: str, runs: int) -> None:
    one = Form({"type": "timeout", "execution_time_ms": given})
    many = load_form(share_success="50", share_timeout="50", delay_ms="7", timeout_ms=given)

    command, order = read_single(one, timeout_ms=35_000), read_load(many, timeout_ms=35_000)

    assert command is not None
    assert command.behavior.execution_time_ms == runs
    assert order is not None
    assert order.behavior_of(BehaviorType.TIMEOUT).execution_time_ms == runs
    assert order.behavior_of(BehaviorType.SUCCESS).execution_time_ms == 7


def test_the_time_of_a_timeout_is_above_the_visibility_timeout() -> None:
    assert default_timeout_ms(30) == 35_000
    assert default_timeout_ms(3_600) == 3_605_000


@pytest.mark.parametrize("percent", ["99.9", "33.3", "0.1", "100", "66.667"])
def test_the_rest_of_any_success_percentage_fails(percent: str) -> None:
    parser = _parser()

    plan = _plan(parser, parser.parse_args(["--success-pct", percent, "--commands", "100000"]))

    succeed = plan.order.types()[BehaviorType.SUCCESS]
    assert succeed == round(float(percent) * 1000)


@pytest.mark.parametrize(
    ("queue", "said"),
    [
        ("x" * 201, "At most 200 characters, not 201"),
        ("a\x00b", "Text must not hold NUL characters or lone surrogates"),
    ],
    ids=["too long", "not storable"],
)
def test_a_reply_queue_that_the_api_refuses_is_refused_at_its_field(queue: str, said: str) -> None:
    form = Form({"type": "success", "reply_to": queue})

    assert read_single(form, timeout_ms=35_000) is None
    assert form.errors == {"reply_to": said}
