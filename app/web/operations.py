"""Operators' actions: retry, complete and cancel troubled commands; cancel what is pending.

Each begins with a plain form. Where something is still to be said or confirmed (a reason, a result,
the operator's name, a large number) the answer is a page with that form, which scripts show in a
dialog; otherwise it is done, and one is back where one was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from flask import flash, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from markupsafe import Markup, escape

from app.actions import jobs, troubled
from app.actions.addressed import domain_of
from app.actions.inputs import CancelCommand, CompleteCommand, TsqFilter
from app.actions.orders import UNDO_SECONDS, Action, CommandKey, Order
from app.models import TROUBLED_FILTER_NAMES, TroubledFilters, domains, get_group_name
from app.models.operator_jobs import JobRow, JobSummary, get_job, statuses_of
from app.models.paging import Total
from app.server import access
from app.server.clock import now
from app.server.errors import Problem, wants_json
from app.server.proxies import path_and_query
from app.visible import visible
from app.web import bp
from app.web.commands import MOVING_SECONDS, RESTING_SECONDS
from app.web.forms import Form
from app.web.job_texts import commands_text, looks_of, undone_text, words_of
from app.web.listing import text_arg
from app.web.remembered import (
    clean_operator,
    current_operator,
    recorded_operator,
    remember_operator,
)
from app.web.rendering import CONFIRMED, ask_to_confirm, local_path, render_page
from commandbus.errors import CommandNotFoundError, InvalidStateError
from commandbus.models import CommandStatus

FILTER_PREFIX = "filter_"
ENTERED_UNTIL = "entered_until"
LIVE_SECONDS = 1
NOTHING_CHOSEN = "Nothing was selected, or nothing matches any more."


@dataclass(frozen=True, slots=True)
class Selection:
    """What a form chose: the commands, or None and the filter that finds too many to name."""

    chosen: list[CommandKey] | None
    filters: TroubledFilters | None
    total: Total
    fields: list[tuple[str, str]]
    """The form's fields that say the same again."""


@bp.post("/troubleshooting/<any(retry, complete, cancel):action>")
@access.operator
def operate(action: str) -> ResponseReturnValue:
    wanted = Action(action)
    selection = read_selection(request.form)
    if selection.chosen == []:
        return _answer(NOTHING_CHOSEN, "info")
    form, operator = _posted()
    is_large = selection.chosen is None
    arguments: dict[str, Any] = {}
    is_asked = bool(operator) and wanted is Action.RETRY and not is_large
    if request.form.get(CONFIRMED) == "yes":
        arguments = _read_arguments(form, wanted, operator)
        is_asked = not form.errors
    if not is_asked:
        return _ask(wanted, selection, form.errors)
    is_undoable = wanted is Action.RETRY and not is_large
    carried = troubled.carry_out(
        Order(
            action=wanted,
            operator=operator,
            chosen=selection.chosen,
            filters=selection.filters,
            delay_seconds=UNDO_SECONDS if is_undoable else 0.0,
            **arguments,
        )
    )
    if carried.job_id is None:
        return _answer(NOTHING_CHOSEN, "info")
    return _named(_after(carried.job_id), operator)


@bp.route("/commands/<uuid:command_id>/cancel", methods=["GET", "POST"])
@access.operator
def cancel_pending(command_id: UUID) -> ResponseReturnValue:
    return _ask_and_cancel(command_id, Action.CANCEL_PENDING)


def _ask_and_cancel(command_id: UUID, action: Action) -> ResponseReturnValue:
    domain = domain_of(command_id, text_arg("domain"))
    back = url_for("web.command", command_id=command_id, domain=request.args.get("domain"))
    form, operator = _posted()
    if request.method == "POST":
        arguments = _read_arguments(form, Action.CANCEL, operator)
        if not form.errors:
            flash(*_cancelled(action, domain, command_id, operator, **arguments))
            return _named(redirect(back, 303), operator)
    return render_template(
        "pages/tsq_action.html",
        **_form_context(
            Action.CANCEL if action is Action.CANCEL_PENDING else action,
            Total(1, is_exact=True),
            False,
            form.errors,
        ),
        target=path_and_query(),
        fields=[],
        back=back,
    )


@bp.route("/commands/<uuid:command_id>/request-cancel", methods=["GET", "POST"])
@access.operator
def request_cancel(command_id: UUID) -> ResponseReturnValue:
    return _ask_and_cancel(command_id, Action.REQUEST_CANCEL)


@bp.post("/commands/<uuid:command_id>/undo-retry")
@access.operator
def undo_retry(command_id: UUID) -> ResponseReturnValue:
    domain = domain_of(command_id, text_arg("domain"))
    try:
        troubled.carry_out_one(Action.UNDO_RETRY, (domain, command_id), recorded_operator())
        flash(
            "The retry is undone: the command is in the troubleshooting queue as before.", "success"
        )
    except CommandNotFoundError:
        flash("The command no longer exists.", "warning")
    except InvalidStateError as exc:
        status = CommandStatus(exc.current_status)
        flash(f"Too late: the retry no longer waits, and the command is {status.value}.", "warning")
    return redirect(url_for("web.command", command_id=command_id, domain=domain), 303)


@bp.get("/troubleshooting/actions/<uuid:job_id>")
@access.viewer
def operator_job(job_id: UUID) -> ResponseReturnValue:
    jobs.current_runner().adopt()
    job = _job(job_id)
    now_in = _now_in(job)
    context = {
        "job": job.summary,
        "entered_until": job.entered_until,
        "skipped": job.skipped,
        "looks": looks_of(job.summary),
        "now_in": now_in,
        "group": None if (group_id := _group_of(job.summary)) is None else get_group_name(group_id),
        "gone": len(job.chosen or ()) - sum(now_in.values()) if now_in else 0,
        "live_seconds": _live_seconds(job.summary, now_in),
        "waits_until": (waits_until := _waits_until(job.summary)),
        # A retry of everything that matched does not keep which commands those were.
        "can_undo": waits_until is not None and job.chosen is not None,
    }
    return render_page("pages/tsq_job.html", context, partials=("tsq_job",))


@bp.post("/troubleshooting/actions/<uuid:job_id>/stop")
@access.operator
def stop_job(job_id: UUID) -> ResponseReturnValue:
    job = _job(job_id)
    if jobs.stop(job_id):
        flash("Stopped. What was done stays done.", "success")
    else:
        flash(f"It was over already: {looks_of(job.summary).text}.", "info")
    return redirect(url_for("web.operator_job", job_id=job_id), 303)


@bp.route("/troubleshooting/actions/<uuid:job_id>/undo", methods=["GET", "POST"])
@access.operator
def undo_job(job_id: UUID) -> ResponseReturnValue:
    job = _job(job_id)
    if job.summary.action != Action.RETRY or job.chosen is None:
        raise Problem(409, "not_undoable", "Only a retry can be undone, and only at first.")
    back = safe_next(url_for("web.troubleshooting"))
    if question := ask_to_confirm(
        title="Undo the retry",
        message=f"Take back the retry of {commands_text(job.summary.done)}?",
        action="Undo the retry",
        back=back,
        danger=False,
    ):
        return question
    outcome = troubled.undo(job, recorded_operator())
    return _answer(undone_text(outcome), "success" if outcome.done else "warning", back)


def read_selection(form: Any) -> Selection:
    """What a form chose: one command by its button, the rows, or everything that matches."""
    back = [("next", form.get("next", ""))]
    only = form.get("only")
    everything = form.get("scope") == "filter" or form.get("everything") == "1"
    if only or not everything:
        texts = [only] if only else form.getlist("keys")
        known = set(domains())
        keys = [key for text in texts if (key := _key(text)) is not None and key[0] in known]
        keys = list(dict.fromkeys(keys))[: troubled.AT_ONCE]
        fields = [("keys", f"{domain}:{command_id}") for domain, command_id in keys]
        return Selection(keys, None, Total(len(keys), is_exact=True), back + fields)
    posted = Form(form)
    values = {name: posted.value(FILTER_PREFIX + name) for name in TROUBLED_FILTER_NAMES}
    values["group_id"] = posted.uuid(f"{FILTER_PREFIX}group_id")
    wanted = posted.read(TsqFilter, values)
    if wanted is None:
        raise Problem(422, detail=f"A filter cannot be used. {next(iter(posted.errors.values()))}.")
    filters = TroubledFilters(**wanted.model_dump(), entered_until=_entered_until(form))
    found = troubled.choose(filters)
    fields = [(FILTER_PREFIX + name, text) for name, text in filters.texts().items()]
    if found.filters.entered_until is not None:
        fields.append((ENTERED_UNTIL, found.filters.entered_until.isoformat()))
    again = [*back, ("scope", "filter"), *fields]
    return Selection(found.keys, found.filters, found.total, again)


def safe_next(default: str) -> str:
    """Where the form was, within this site; *default* where it does not say."""
    return local_path(request.form.get("next") or request.args.get("next") or "", default)


def _entered_until(form: Any) -> datetime | None:
    """The moment whose commands a question named: an answer is about no others."""
    try:
        moment = datetime.fromisoformat(str(form.get(ENTERED_UNTIL, "")))
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _key(text: str) -> CommandKey | None:
    domain, _, command_id = text.partition(":")
    try:
        return domain, UUID(command_id)
    except ValueError:
        return None


def _posted() -> tuple[Form, str]:
    """The form, and the name of who sent it, which is empty where it is not known."""
    form = Form(request.form)
    return form, current_operator() or clean_operator(form.text("operator"))


def _read_arguments(form: Form, action: Action, operator: str) -> dict[str, Any]:
    """What the action needs besides; with errors in *form* where it cannot be had."""
    if not operator:
        form.errors["operator"] = "Give your name, so that others can see who did this"
    if action is Action.CANCEL:
        cancel = form.read(CancelCommand, {"reason": form.value("reason")})
        return {} if cancel is None else {"reason": cancel.reason}
    if action is Action.COMPLETE:
        values = {"result_data": form.json("result"), "notes": form.value("notes")}
        complete = form.read(CompleteCommand, values, {"result_data": "result"})
        if complete is not None:
            return {"result": complete.result_data, "notes": complete.notes}
    return {}


def _ask(action: Action, selection: Selection, errors: dict[str, str]) -> str:
    return render_template(
        "pages/tsq_action.html",
        **_form_context(action, selection.total, selection.chosen is None, errors),
        target=url_for("web.operate", action=action.value),
        fields=selection.fields,
        back=safe_next(url_for("web.troubleshooting")),
    )


def _form_context(
    action: Action, total: Total, is_large: bool, errors: dict[str, str]
) -> dict[str, Any]:
    words = words_of(action)
    return {
        "action": action.value,
        "title": f"{words.verb} {commands_text(total.count, total.is_exact)}",
        "count": total.count,
        "is_large": is_large,
        "errors": errors,
        "values": {
            name: request.form.get(name, "") for name in ("reason", "result", "notes", "operator")
        },
        "asks_name": not current_operator(),
    }


def _after(job_id: UUID) -> ResponseReturnValue:
    """Where one goes once an action has begun."""
    summary = _job(job_id).summary
    if summary.state == "running":
        return redirect(url_for("web.operator_job", job_id=job_id), 303)
    text = looks_of(summary).text
    kind = "warning" if summary.changed else "success"
    undo = None
    if summary.delay_seconds and summary.done:
        start = "It starts" if summary.done == 1 else "They start"
        text = f"{text}. {start} in {summary.delay_seconds:.0f} seconds"
        undo = url_for("web.undo_job", job_id=job_id, next=safe_next(""))
    # What becomes of one command stands on its own page.
    follow = url_for("web.operator_job", job_id=job_id) if summary.expected > 1 else None
    return _answer(f"{text}.", kind, undo=undo, follow=follow)


def _answer(
    text: str,
    kind: str,
    back: str | None = None,
    undo: str | None = None,
    follow: str | None = None,
) -> ResponseReturnValue:
    """Tell what was done: scripts in JSON, everybody else on the page where they were."""
    text = visible(text)
    if wants_json():
        return {
            "text": text,
            "kind": kind,
            "undo": undo,
            "undo_seconds": UNDO_SECONDS,
            "follow": follow,
        }
    message = escape(text)
    if undo is not None:
        message += Markup(' <a class="link" href="{}" data-undo>Undo</a>').format(undo)
    if follow is not None:
        message += Markup(' <a class="link" href="{}">Follow</a>').format(follow)
    flash(message, kind)
    return redirect(back or safe_next(url_for("web.troubleshooting")), 303)


def _named(answer: ResponseReturnValue, operator: str) -> ResponseReturnValue:
    """Remember the name for the next time."""
    response = make_response(answer)
    if not current_operator():
        remember_operator(response, operator)
    return response


def _cancelled(
    action: Action, domain: str, command_id: UUID, operator: str, reason: str
) -> tuple[str, str]:
    try:
        done = troubled.carry_out_one(action, (domain, command_id), operator, reason=reason)
    except CommandNotFoundError:
        return "The command no longer exists.", "warning"
    except InvalidStateError as exc:
        status = CommandStatus(exc.current_status)
        return f"Nothing was cancelled: the command is {status.value} now.", "warning"
    if done.status is CommandStatus.IN_PROGRESS:
        return "Its worker was asked to cancel it.", "success"
    return "Cancelled.", "success"


def _now_in(job: JobRow) -> dict[str, int]:
    """Where the commands of a retry are now, by status; empty where that is not known or plain."""
    summary = job.summary
    is_plain = summary.action != Action.RETRY or summary.undone_at is not None
    if job.chosen is None or is_plain or not summary.done:
        return {}
    counts = statuses_of(job.chosen)
    return {status.value: counts[status] for status in CommandStatus}


def _group_of(job: JobSummary) -> UUID | None:
    text = (job.filter or {}).get("group_id")
    return None if text is None else UUID(text)


def _live_seconds(job: JobSummary, now_in: Mapping[str, int]) -> int:
    if job.state == "running":
        return LIVE_SECONDS
    is_moving = now_in.get(CommandStatus.PENDING) or now_in.get(CommandStatus.IN_PROGRESS)
    return MOVING_SECONDS if is_moving else RESTING_SECONDS


def _waits_until(job: JobSummary) -> datetime | None:
    """Until when the job's retries have not begun; None where that is over, or they are undone."""
    until = job.created_at + timedelta(seconds=job.delay_seconds)
    open_still = job.delay_seconds and job.undone_at is None and until > now()
    return until if open_still else None


def _job(job_id: UUID) -> JobRow:
    job = get_job(job_id)
    if job is None:
        raise Problem(404, "unknown_action", "There is no such action.")
    return job
