"""How a request that cannot be served is answered: a page for people, problem+json for programs.

Neither ever holds SQL, a path or a traceback; the request id leads to the log, which may.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, cast

from flask import (
    Flask,
    Response,
    current_app,
    g,
    has_app_context,
    json,
    make_response,
    render_template,
    request,
)
from flask_wtf.csrf import CSRFError
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from werkzeug.exceptions import HTTPException

from app.database.health import Check, Level
from app.server.database_faults import Failure, Fault, FaultMemory, failure_of
from commandbus.errors import CommandBusError

logger = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Text(NamedTuple):
    """What a status means to the reader: a machine's word, a headline and a sentence."""

    code: str
    headline: str
    sentence: str


TEXTS = {
    400: Text("bad_request", "That request makes no sense", "The request could not be understood."),
    401: Text("unauthenticated", "Please sign in", "This needs credentials."),
    403: Text("forbidden", "Not allowed", "This is not allowed."),
    404: Text("not_found", "Nothing here", "There is nothing at this address."),
    405: Text("method_not_allowed", "Wrong method", "This address does not accept that method."),
    409: Text("conflict", "It has changed meanwhile", "The state does not allow this now."),
    412: Text("version_changed", "Someone was faster", "It was changed by someone else meanwhile."),
    413: Text("too_large", "Too large", "A request may hold at most 1 MB."),
    415: Text("unsupported_media_type", "Wrong media type", "The body has the wrong media type."),
    422: Text("invalid", "Some values are not valid", "Some values are not valid."),
    429: Text("too_many_requests", "Too many requests", "Please slow down and try again."),
    500: Text("internal_error", "Something went wrong", "The fault is on our side and was logged."),
    503: Text(
        "unavailable",
        "Not now",
        "This cannot be done now.",
    ),
    504: Text("timeout", "That took too long", "The database did not answer in time."),
}


IN_FRAME = frozenset({403, 404, 405, 409, 412, 422})
"""What a reader meets in the middle of work: the page keeps the navigation and the search."""


class Problem(HTTPException):
    """An error to answer with, raised by views: `raise Problem(409, "not_in_tsq", "…")`.

    Further members such as `current_status=…` become members of the JSON answer.
    """

    def __init__(
        self,
        status: int,
        code: str | None = None,
        detail: str | None = None,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        headline: str | None = None,
        **members: Any,
    ) -> None:
        text = _text(status)
        super().__init__(detail or text.sentence)
        self.code = status
        self.problem_code = code or text.code
        self.headline = headline or text.headline
        self.errors = list(errors)
        self.extra_headers = dict(headers or {})
        self.members = members

    def get_headers(self, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*args, **kwargs), *self.extra_headers.items()]


def init_app(app: Flask) -> None:
    app.register_error_handler(HTTPException, answer)
    app.register_error_handler(CSRFError, _stale_form)
    app.register_error_handler(ValidationError, validation_response)
    app.extensions["fault_memory"] = FaultMemory()
    app.register_error_handler(Exception, _unexpected)


def wants_json() -> bool:
    """Whether a program asks: anything under /api or /health, or who prefers JSON to HTML."""
    if request.path.startswith(("/api/", "/health/")):
        return True
    best = request.accept_mimetypes.best_match(["text/html", "application/json", PROBLEM_TYPE])
    return best in ("application/json", PROBLEM_TYPE)


def answer(error: HTTPException) -> Response:
    """The answer to *error* in the form that the caller reads."""
    if error.response is not None:
        return make_response(error.response)  # a redirect, or an answer that is already complete
    status = error.code or 500
    problem = error if isinstance(error, Problem) else Problem(status, detail=_own_detail(error))
    if wants_json():
        response = Response(json.dumps(_as_json(problem, status)), status, mimetype=PROBLEM_TYPE)
    else:
        page = render_template(
            "pages/error.html",
            status=status,
            headline=problem.headline,
            detail=problem.description,
            request_id=g.request_id,
            in_frame=status in IN_FRAME,
            retry_after=problem.extra_headers.get("Retry-After")
            if status in (503, 504) and request.method == "GET"
            else None,
        )
        response = Response(page, status)
    for name, value in error.get_headers():
        if name.lower() != "content-type":  # Allow, Retry-After and the like
            response.headers[name] = value
    response.headers["Cache-Control"] = "no-store"
    return response


def validation_response(error: ValidationError) -> Response:
    """422 with one entry for each value that pydantic refused."""
    return answer(Problem(422, errors=refusals(error)))


def refusals(error: ValidationError) -> list[dict[str, str]]:
    """What was refused, for the API's answer and for forms: the field, a code, and why."""
    return [
        {
            "field": ".".join(str(part) for part in item["loc"]),
            "code": item["type"],
            "message": _in_words(item),
        }
        for item in error.errors(include_url=False)
    ]


def _in_words(item: ErrorDetails) -> str:
    """Why a value was refused, in plain words where pydantic has others."""
    bounds = item.get("ctx", {})
    match item["type"]:
        case "missing":
            return "Required"
        case "string_too_short":
            return f"At least {_counted(bounds['min_length'])}"
        case "string_too_long":
            return f"At most {_counted(bounds['max_length'])}, not {len(item['input']):,}"
        case "greater_than_equal":
            return f"Must be at least {_readable(bounds['ge'])}"
        case "less_than_equal":
            return f"Must be at most {_readable(bounds['le'])}"
        case "int_type" | "int_from_float" | "int_parsing":
            return "Must be a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return "Must be a number"
        case "dict_type":
            return "Must be a JSON object"
    return item["msg"]


def _counted(number: int) -> str:
    return f"{number:,} character{'' if number == 1 else 's'}"


def _readable(bound: float) -> str:
    return f"{bound:,}".removesuffix(".0")


def _as_json(problem: Problem, status: int) -> dict[str, Any]:
    return {
        **problem.members,
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": problem.description,
        "code": problem.problem_code,
        "request_id": g.request_id,
        "errors": problem.errors,
    }


def _own_detail(error: HTTPException) -> str | None:
    """The text given to abort(); werkzeug's default texts speak of servers and spelling."""
    return None if error.description == type(error).description else error.description


def _stale_form(error: CSRFError) -> Response:
    logger.info("csrf_refused", extra={"request_id": g.request_id, "reason": error.description})
    return answer(
        Problem(
            403, "csrf_failed", "This form is out of date. Go back, reload the page, try again."
        )
    )


def unavailable(failure: Failure) -> Response:
    """The answer to a failure of the database, which is logged in one line."""
    fault = failure.fault
    log_failure(failure)
    fault_memory().add(fault)
    headers = {"X-Problem": fault.sentence}  # for a page that is open and refreshes
    if fault.may_pass:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    text = _told(fault)
    return answer(Problem(fault.status, fault.code, text, headers=headers, headline=fault.headline))


def log_failure(failure: Failure, event: str = "database_fault") -> None:
    """One line: which request, and why; the statement or a traceback would say no more."""
    logger.warning(
        event,
        extra={
            "request_id": g.get("request_id") if has_app_context() else None,
            "code": failure.fault.code,
            "sqlstate": failure.sqlstate,
            "reason": failure.reason,
        },
    )


def fault_memory() -> FaultMemory:
    """How the database failed recently in the current application."""
    return cast(FaultMemory, current_app.extensions["fault_memory"])


def recent_faults() -> list[Check]:
    """The check that says how the database failed recently; empty if it did not."""
    recent = fault_memory().recent()
    if recent is None:
        return []
    times = "Once" if recent.count == 1 else f"{recent.count:,} times"
    return [
        Check(
            "failed_requests",
            "Failed requests",
            Level.WARNING,
            float(recent.count),
            "requests",
            1.0,
            f"{times} in the last minute, the last time: {recent.last.sentence}",
            "The log names the reason of each, by the request's id.",
        )
    ]


def _told(fault: Fault) -> str:
    """The sentence of *fault*; after a change it says what is known of the change."""
    if request.method in READING_METHODS or fault.changed_nothing:
        return fault.sentence
    return f"{fault.sentence} Whether anything was changed is not known: look before you try again."


def _unexpected(error: Exception) -> Response:
    failure = failure_of(error)
    if failure is not None:
        return unavailable(failure)
    if isinstance(error, CommandBusError):  # what the bus says of a domain or a value
        return answer(Problem(409, "refused", f"{str(error).rstrip('.')}."))
    logger.error("request_failed", extra={"request_id": g.request_id}, exc_info=error)
    return answer(Problem(500))


def _text(status: int) -> Text:
    if status in TEXTS:
        return TEXTS[status]
    phrase = HTTPStatus(status).phrase
    return Text(phrase.lower().replace(" ", "_"), phrase, f"{phrase}.")
