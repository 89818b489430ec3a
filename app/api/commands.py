"""Commands: send, generate, list, look at, cancel."""

from __future__ import annotations

from typing import Any

from flask import request

from app.actions import inputs, load_tests, troubled
from app.actions.addressed import domain_of
from app.actions.orders import Action
from app.api import answers, bp
from app.api.body import require_payload_size
from app.api.routing import CommandPath, CorrelationPath
from app.loadtest.runs import Origin
from app.models import (
    CommandFilters,
    Cursor,
    Listing,
    Window,
    conversation,
    get_command_detail,
    list_commands,
    send_test_command,
    setting_now,
)
from app.server import access
from app.server.errors import Problem
from app.server.portal import call, current_bus, current_portal
from app.settings.configuration import ConfigStore
from app.testcommand.behaviors import (
    DEFAULT_BEHAVIOR,
    BehaviorDistribution,
    BehaviorType,
    default_timeout_ms,
)


@bp.post("/commands", responses={200: answers.CreatedCommand, 201: answers.CreatedCommand})
@access.operator
def send(body: inputs.SendCommand) -> Any:
    """Send one test command.

    201 for a new one; 200 where the same command was sent before and nothing was sent now.
    """
    require_payload_size(body.payload)
    sent = call(send_test_command, current_bus(), **dict(body))
    created = answers.CreatedCommand(
        command_id=sent.command_id,
        status=sent.status,
        msg_id=sent.msg_id,
        behavior=body.behavior.to_json(),
        payload=body.payload,
        correlation_id=body.correlation_id,
    )
    return created, 201 if sent.created else 200


@bp.post("/commands/quick", responses={201: answers.CommandState})
@access.operator
def quick(body: inputs.Empty) -> Any:  # noqa: ARG001 - read, so that nothing else is accepted
    """Send one test command that succeeds."""
    sent = call(send_test_command, current_bus(), DEFAULT_BEHAVIOR, {})
    return answers.CommandState.model_validate(sent), 201


@bp.post("/commands/bulk", responses={201: answers.CreatedCommands, 202: answers.StartedRun})
@access.operator
def bulk(body: inputs.BulkCommands) -> Any:
    """Generate test commands: up to 10,000 at once (201), more in the background (202)."""
    order = load_tests.order_of(body, lambda: _timeout_ms(body))
    distribution = body.behavior_distribution or BehaviorDistribution(
        {BehaviorType.SUCCESS if body.behavior is None else body.behavior.type: 100}
    )
    made = load_tests.begin(order, origin=Origin.API, name=body.name, started_by=body.operator)
    if made is None:
        started = answers.StartedRun(
            run_id=order.batch_id,
            count=order.count,
            behavior_distribution=distribution.to_json(),
            name=body.name,
        )
        return (
            started,
            202,
            {"Location": f"{request.script_root}/api/v1/load-tests/{order.batch_id}"},
        )
    created = answers.CreatedCommands(
        created=made.created,
        command_ids=made.command_ids,
        run_id=made.batch_id,
        generation_time_ms=round(made.generation_seconds * 1000),
        queue_time_ms=round(made.queue_seconds * 1000),
        behavior_distribution=distribution.to_json(),
        name=body.name,
    )
    return created, 201


@bp.get("/commands", responses={200: answers.CommandList})
@access.viewer
def list_(query: inputs.CommandsQuery) -> Any:
    """The commands that match every filter, newest first."""
    page = list_commands(CommandFilters(**query.filters()), window(query))
    return answers.CommandList(
        commands=[answers.CommandItem.model_validate(row) for row in page.rows],
        **paging(query, page),
    )


@bp.get("/commands/<command_id:command_id>", responses={200: answers.CommandDetailItem})
@access.viewer
def detail(path: CommandPath, query: inputs.DomainQuery) -> Any:
    """One command with its payload, behaviour, result, attempts, and why it is where it is."""
    domain = domain_of(path.command_id, query.domain)
    found = get_command_detail(path.command_id, domain, default_max_attempts=_configured_attempts)
    if found is None:
        raise Problem(404, "unknown_command", f"There is no command {path.command_id}.")
    return answers.CommandDetailItem.model_validate(found.complete())


@bp.get("/conversations/<command_id:correlation_id>", responses={200: answers.ConversationItem})
@access.viewer
def conversation_(path: CorrelationPath) -> Any:
    """The commands of a correlation id as a tree of what caused what."""
    found = conversation(path.correlation_id)
    if not found.branches:
        raise Problem(
            404, "unknown_conversation", f"No command has the correlation id {path.correlation_id}."
        )
    return answers.ConversationItem(
        correlation_id=path.correlation_id,
        commands=[
            answers.BranchItem(
                **answers.RelatedItem.model_validate(branch.row).model_dump(), depth=branch.depth
            )
            for branch in found.branches
        ],
        is_complete=found.is_complete,
    )


@bp.post("/commands/<command_id:command_id>/cancel", responses={200: answers.CommandState})
@access.operator
def cancel(path: CommandPath, query: inputs.DomainQuery, body: inputs.CancelCommand) -> Any:
    """Cancel a command that is PENDING."""
    domain = domain_of(path.command_id, query.domain)
    done = troubled.carry_out_one(
        Action.CANCEL_PENDING, (domain, path.command_id), body.operator, reason=body.reason
    )
    return answers.CommandState.model_validate(done)


@bp.post("/commands/<command_id:command_id>/request-cancel", responses={202: answers.CommandState})
@access.operator
def request_cancel(path: CommandPath, query: inputs.DomainQuery, body: inputs.CancelCommand) -> Any:
    """Ask to cancel a command that runs; one that is PENDING is cancelled at once."""
    domain = domain_of(path.command_id, query.domain)
    done = troubled.carry_out_one(
        Action.REQUEST_CANCEL, (domain, path.command_id), body.operator, reason=body.reason
    )
    return answers.CommandState.model_validate(done), 202


def window(query: inputs.PageQuery) -> Window:
    """The part of a list that *query* asks for. Raises CursorError."""
    cursor = None if query.cursor is None else Cursor.parse(query.cursor)
    return Window(query.limit, query.offset, cursor)


def paging(query: inputs.PageQuery, page: Listing[Any]) -> dict[str, Any]:
    """What an answer says of the part of a list that it holds."""
    return {
        "total": page.total,
        "total_is_exact": page.total_is_exact,
        "limit": query.limit,
        "offset": query.offset,
        "next_cursor": page.next_cursor,
        "previous_cursor": page.previous_cursor,
    }


def _configured_attempts() -> int:
    """The budget of commands that have none of their own."""
    return call(ConfigStore(current_portal().pool).get_retry_config).max_attempts


def _timeout_ms(body: inputs.BulkCommands) -> int | None:
    """How long the timeouts of a distribution run: as *body* says, else longer than a lease."""
    if body.delay_ms is not None:
        return None
    worker = call(ConfigStore(current_portal().pool).get_worker_config)
    lease = setting_now("test", "visibility_timeout", worker.visibility_timeout)
    return default_timeout_ms(lease or worker.visibility_timeout)
