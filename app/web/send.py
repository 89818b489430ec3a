"""Send Command: one command, or many for a load test."""

from __future__ import annotations

from typing import Any

from flask import flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from app import access, load_tests
from app.behaviors import PUBLIC_TYPES, BehaviorType
from app.bulk import MAX_COUNT
from app.config import ConfigStore
from app.models import send_test_command
from app.portal import call, current_bus, current_portal
from app.runs import Origin
from app.web import bp
from app.web.remembered import current_operator
from app.web.rendering import render_page
from app.web.send_form import ERROR_TYPES, LABELS, MIXED, Form, read_load, read_single
from commandbus import CommandBusError

EMPTY_SINGLE = {"type": BehaviorType.SUCCESS.value, "execution_time_ms": "0", "payload": ""}
EMPTY_LOAD = {
    "name": "",
    "count": "1000",
    "mix": "success",
    "delay_ms": "0",
    **{f"share_{kind.value}": str(MIXED.get(kind, 0)) for kind in PUBLIC_TYPES},
}


@bp.get("/send")
@access.viewer
def send() -> ResponseReturnValue:
    return render_page(
        "pages/send_command.html", send_context(Form(EMPTY_SINGLE), Form(EMPTY_LOAD))
    )


@bp.post("/send")
@access.operator
def send_one() -> ResponseReturnValue:
    form = Form(request.form.to_dict())
    command = read_single(form)
    if command is None:
        return _refused(form, Form(EMPTY_LOAD))
    try:
        sent = call(
            send_test_command,
            current_bus(),
            command.behavior,
            command.payload,
            command_id=command.command_id,
            correlation_id=command.correlation_id,
            reply_to=command.reply_to,
            max_attempts=command.max_attempts,
        )
    except CommandBusError as exc:
        form.errors["form"] = str(exc)
        return _refused(form, Form(EMPTY_LOAD))
    detail = f"{request.script_root}/commands/{sent.command_id}"
    trail = f"{request.script_root}/audit/{sent.command_id}"
    what = "was sent" if sent.created else "had been sent before, with the same content"
    flash(
        Markup(
            '<span class="id">{}</span> {}. <a class="link" href="{}">Details</a> · '
            '<a class="link" href="{}">Audit trail</a>'
        ).format(sent.command_id, what, detail, trail),
        "success",
    )
    return redirect(url_for("web.send"), 303)


@bp.post("/send/load")
@access.operator
def start_load() -> ResponseReturnValue:
    """Generate the commands of a load test, and show the run."""
    form = Form(request.form.to_dict())
    order = read_load(form)
    if order is None:
        return _refused(Form(EMPTY_SINGLE), form)
    try:
        made = load_tests.begin(
            order,
            origin=Origin.PAGE,
            name=form.text("name") or None,
            started_by=current_operator(),
        )
    except CommandBusError as exc:
        form.errors["form"] = str(exc)
        return _refused(Form(EMPTY_SINGLE), form)
    if made is not None:
        seconds = made.generation_seconds + made.queue_seconds
        flash(f"{made.created:,} commands were sent in {seconds:.2f} s.", "success")
    return redirect(url_for("web.load_test_run", run_id=order.batch_id), 303)


def _refused(single: Form, load: Form) -> ResponseReturnValue:
    return render_page("pages/send_command.html", send_context(single, load)), 422


def send_context(single: Form, load: Form) -> dict[str, Any]:
    """Everything that the page shows."""
    config = call(ConfigStore(current_portal().pool).load)
    return {
        "single": single,
        "load": load,
        "worker": config.worker,
        "retry": config.retry,
        "choices": [(kind.value, *LABELS[kind]) for kind in PUBLIC_TYPES],
        "shares": [(kind.value, LABELS[kind][0]) for kind in PUBLIC_TYPES],
        "error_types": ERROR_TYPES,
        "most": MAX_COUNT,
    }
