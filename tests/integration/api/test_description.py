"""The API answers what its own description says, to what the description allows and to the rest."""

from __future__ import annotations

from typing import Any

import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

EXAMPLES = 15


def test_no_answer_is_a_fault_or_undescribed(app: Flask) -> None:
    document = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", app)
    # Starting a worker starts a process, which is proved elsewhere.
    described = document.exclude(path="/api/v1/workers", method="POST")
    tried = 0

    for found in described.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy())
        def answers_as_described(case: Any) -> None:
            # A description cannot say that dates must be in order or that percentages add up.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        answers_as_described()
        tried += 1

    assert tried > 20
