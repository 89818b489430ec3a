"""Send Command: one command, or many for a load test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask import flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from app.actions import load_tests
from app.loadtest.generating import MAX_COUNT, MIXED
from app.loadtest.runs import Origin
from app.models import send_test_command, setting_now
from app.server import access
from app.server.portal import call, current_bus, current_portal
from app.settings.configuration import ConfigStore
from app.testcommand.behaviors import LABELS, PUBLIC_TYPES, BehaviorType, default_timeout_ms
from app.web import bp
from app.web.forms import Form
from app.web.remembered import current_operator
from app.web.rendering import render_page
from app.web.send_form import ERROR_TYPES, MIXES, read_load, read_single
from commandbus import CommandBusError

MIXED_WORDS = {
    BehaviorType.SUCCESS: "success",
    BehaviorType.FAIL_TRANSIENT_THEN_SUCCEED: "retried",
    BehaviorType.FAIL_PERMANENT: "permanent",
}
EMPTY_SINGLE = {"type": BehaviorType.SUCCESS.value, "execution_time_ms": "0", "payload": ""}
EMPTY_LOAD = {
    "name": "",
    "count": "1000",
    "mix": "success",
    "delay_ms": "0",
    "timeout_ms": "",
    **{f"share_{kind.value}": str(MIXED.get(kind, 0)) for kind in PUBLIC_TYPES},
}
MIXED_TEXT = ", ".join(f"{share}% {MIXED_WORDS[kind]}" for kind, share in MIXED.items())


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
    command = read_single(form, timeout_ms=default_timeout_ms(_settings().visibility_timeout))
    if command is None:
        return _refused(form, Form(EMPTY_LOAD))
    try:
        sent = call(send_test_command, current_bus(), **dict(command))
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
    order = read_load(form, timeout_ms=default_timeout_ms(_settings().visibility_timeout))
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


@dataclass(frozen=True, slots=True)
class SendSettings:
    """With which settings workers will run what is sent."""

    visibility_timeout: int
    max_attempts: int
    base_delay_ms: int
    backoff_multiplier: float
    differ: bool
    """Workers that run have values other than the stored ones, or than each other."""

    @property
    def lease_ms(self) -> int:
        """The visibility timeout in the unit of execution times."""
        return self.visibility_timeout * 1000


def _settings() -> SendSettings:
    config = call(ConfigStore(current_portal().pool).load)
    stored = {
        "visibility_timeout": config.worker.visibility_timeout,
        "max_attempts": config.retry.max_attempts,
        "base_delay_ms": config.retry.base_delay_ms,
    }
    now = {name: setting_now("test", name, default) for name, default in stored.items()}
    used = {name: stored[name] if found is None else found for name, found in now.items()}
    return SendSettings(
        **used, backoff_multiplier=config.retry.backoff_multiplier, differ=now != stored
    )


def send_context(single: Form, load: Form) -> dict[str, Any]:
    """Everything that the page shows."""
    settings = _settings()
    return {
        "single": single,
        "load": load,
        "settings": settings,
        "timeout_ms": default_timeout_ms(settings.visibility_timeout),
        "choices": [(kind.value, *LABELS[kind]) for kind in PUBLIC_TYPES],
        "shares": [(kind.value, LABELS[kind][0]) for kind in PUBLIC_TYPES],
        "error_types": ERROR_TYPES,
        "most": MAX_COUNT,
        "mixes": MIXES,
        "mixed_text": MIXED_TEXT,
    }
