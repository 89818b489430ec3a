"""The API answers what its own description says, whether to what that allows, or not, or to noise.

`make chaos` tries thousands of requests for each endpoint; CHAOS_EXAMPLES names another number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.chaos.conftest import LONG, PARTS, part_of, scaled

EXAMPLES = int(os.environ.get("CHAOS_EXAMPLES") or scaled(8, 10_000))
FEW = 20

tries_hard = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not LONG,
    phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if LONG else [])],
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(scaled(180, 10 * 3600))

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\x00", "\ud800", 2**63, -1, "5", "1e999", "%_", "'; --", "<script>"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def operations(app: Flask) -> Iterator[Any]:
    """Every described operation but those that start processes, which is proved elsewhere."""
    document = schemathesis.openapi.from_wsgi("/api/v1/openapi.json", app)
    described = document.exclude(path="/api/v1/workers", method="POST").get_all_operations()
    for found in part_of(described):
        assert isinstance(found, Ok), found
        yield found.ok()


def few(body: Any) -> None:
    """What would generate up to a million commands generates some."""
    if isinstance(body, dict) and isinstance(body.get("count"), int) and body["count"] > FEW:
        body["count"] = body["count"] % FEW + 1 if body["count"] <= 1_000_000 else body["count"]


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: str(mode.value))
def test_no_answer_is_a_fault_or_undescribed(app: Flask, mode: GenerationMode) -> None:
    def answers_as_described(case: Any) -> None:
        few(case.body)
        # A description cannot say that dates must be in order or that percentages add up.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    tried = 0
    for operation in operations(app):
        try:
            tries_hard(given(operation.as_strategy(generation_mode=mode))(answers_as_described))()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # nothing can be wrong about this one
        else:
            tried += 1

    assert tried > 20 // PARTS


def test_noise_is_answered_as_any_bad_request(app: Flask, client: FlaskClient) -> None:
    tried = 0

    for operation in operations(app):
        tries_hard(given(noise(operation))(asked(client, operation)))()
        tried += 1

    assert tried > 20 // PARTS


def noise(operation: Any) -> st.SearchStrategy[Any]:
    """Any bytes or JSON as body, also with names that mean something, any query."""
    bodies = st.binary() | JSON.map(_dumped)
    if fields := _fields_of(operation):
        bodies |= st.dictionaries(st.sampled_from(fields), JSON, max_size=4).map(_dumped)
    names = st.sampled_from(["limit", "cursor", "q", "domain", "status", "offset"]) | st.text()
    return st.fixed_dictionaries(
        {
            "data": st.just(b"") if operation.method == "get" else bodies,
            "content_type": st.sampled_from(["application/json", "text/plain", None]),
            "query_string": st.dictionaries(
                names.map(_encoded), (st.text() | st.integers().map(str)).map(_encoded), max_size=3
            ),
        }
    )


def asked(client: FlaskClient, operation: Any) -> Callable[[Any], None]:
    """Sends a request to *operation*, and refuses answers that are not described."""
    described = {int(status) for status in operation.definition.raw["responses"]}
    path = operation.full_path.replace("{", "").replace("}", "")

    def answers_as_described(request: Any) -> None:
        answer = client.open(path, method=operation.method.upper(), **request)
        assert answer.status_code < 500, (path, request, answer.text)
        assert answer.status_code in described, (path, request, answer.status_code)
        if answer.status_code >= 400:
            assert answer.mimetype == "application/problem+json", (path, request, answer.text)

    return answers_as_described


def _dumped(value: Any) -> bytes:
    few(value)
    return json.dumps(value).encode()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _fields_of(operation: Any) -> list[str]:
    """The names of the fields that a body may have."""
    fields: set[str] = set()
    for body in operation.body:
        schema = getattr(body, "optimized_schema", None)
        if isinstance(schema, dict):
            bundled = schema.get("x-bundled", {}).get(schema.get("$ref", "").rpartition("/")[2])
            fields |= set((bundled or schema).get("properties", {}))
    return sorted(fields)
