"""How the API's routes are read, answered and described.

The extension that describes the routes would also validate the requests, but less exactly than
promised: it takes the last of repeated keys and falls back to an empty object for broken JSON. So
its description is kept and its reading replaced; see docs/decisions/.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any
from uuid import UUID

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from pydantic import BaseModel, ConfigDict, Field
from werkzeug.routing import BaseConverter

from app.actions.inputs import UUID_PATTERN, Id, Query
from app.api.body import is_storable, read_body, unstorable
from app.server import identity
from app.server.errors import PROBLEM_TYPE, Problem


class CommandIdConverter(BaseConverter):
    """An id in its canonical form; any other spelling is no address of ours."""

    regex = UUID_PATTERN

    def to_python(self, value: str) -> UUID:
        return UUID(value)


class WorkerIdConverter(BaseConverter):
    """A positive number in its only spelling."""

    regex = r"[1-9][0-9]{0,17}"

    def to_python(self, value: str) -> int:
        return int(value)


CONVERTERS = {"command_id": CommandIdConverter, "worker_id": WorkerIdConverter}


class CommandPath(BaseModel):
    """The address of one command."""

    command_id: Id


class CorrelationPath(BaseModel):
    """The address of the commands of one correlation id."""

    correlation_id: Id


class JobPath(BaseModel):
    """The address of one job."""

    job_id: Id


class RunPath(BaseModel):
    """The address of one load-test run."""

    run_id: Id


class WorkerPath(BaseModel):
    """The address of one worker."""

    worker_id: int = Field(ge=1)


class Answer(BaseModel):
    """What the API answers; made from the values that the queries give."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


class ApiBlueprint(APIBlueprint):
    """Routes whose annotated `path`, `query` and `body` are read strictly, and described."""

    @staticmethod
    def create_view_func(
        func: Callable[..., Any],
        header: Any,  # noqa: ARG004 - the extension passes all of them by position
        cookie: Any,  # noqa: ARG004
        path: type[BaseModel] | None,
        query: type[BaseModel] | None,
        form: Any,  # noqa: ARG004
        body: type[BaseModel] | None,
        raw: Any,  # noqa: ARG004
        *_: Any,
        **__: Any,
    ) -> Callable[..., Response]:
        """A view that reads what *func* is annotated with and answers with what it returns."""

        @wraps(func)
        def view(**values: Any) -> Response:
            arguments: dict[str, Any] = {}
            if path is not None:
                arguments["path"] = path.model_validate(values)
            given = read_query(query or Query)
            if query is not None:
                arguments["query"] = given
            if body is not None:
                arguments["body"] = _by_caller(read_body(body))
            return _response(func(**arguments))

        return view


def read_query(model: type[BaseModel]) -> BaseModel:
    """The query string as *model*. Raises Problem, and ValidationError, both answered 422."""
    values: dict[str, str] = {}
    for name, given in request.args.lists():
        if not is_storable(name) or not all(map(is_storable, given)):
            raise unstorable(name)
        if len(given) > 1:
            message = "May be given once"
            raise Problem(422, errors=[{"field": name, "code": "repeated", "message": message}])
        values[name] = given[0]
    return model.model_validate(values)


def _by_caller(body: BaseModel) -> BaseModel:
    """*body* with the name under which the action is recorded: the login's where there is one."""
    given = getattr(body, "operator", None)
    if given is None:
        return body
    return body.model_copy(update={"operator": identity.recorded_name(given)})


def _response(returned: Any) -> Response:
    status = 200
    headers: dict[str, str] = {}
    if isinstance(returned, tuple):
        returned, status, *rest = returned
        headers = rest[0] if rest else {}
    if isinstance(returned, Response):
        return returned
    text = returned.model_dump_json(by_alias=True)
    return Response(text, status, headers, mimetype="application/json")


def problem_response(description: str) -> dict[str, Any]:
    """How an error is described in the OpenAPI document."""
    reference = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {PROBLEM_TYPE: {"schema": reference}}}
