"""Settings: what workers and retries do, who overrides it, and who changed it when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flask import flash, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from app.models import WorkerState, list_workers
from app.server import access
from app.server.portal import call, current_portal
from app.settings.configuration import (
    RETRY_OPTIONS,
    WORKER_OPTIONS,
    ConfigStore,
    ConfigVersionError,
    StoredConfig,
)
from app.settings.options import Option, Source, plain_number
from app.web import bp
from app.web.remembered import current_operator
from app.web.rendering import ask_to_confirm, render_page
from app.web.settings_form import (
    BEFORE,
    DEFAULTS,
    OPTION_OF,
    OPTIONS,
    Submitted,
    all_values,
    by_section,
    delays_of,
    fields_of,
    retry_from,
    versions_of,
)

SHOWN_VERSIONS = 15
UNNAMED_OPERATOR = "web"


@dataclass(frozen=True, slots=True)
class Override:
    """A setting for which a running worker does not follow what is stored."""

    option: Option
    worker: str
    host: str
    value: str
    name: str
    """The flag or the variable that says so."""


@bp.get("/settings")
@access.viewer
def settings() -> ResponseReturnValue:
    return render_page(
        "pages/settings.html",
        settings_context(_store_load()),
        partials=("settings_news", "settings_activity"),
    )


@bp.get("/settings/delays")
@access.viewer
def settings_delays() -> ResponseReturnValue:
    """The delays of retry settings that are being typed; nothing while they make no sense yet."""
    retry = retry_from(request.args)
    if retry is None:
        return "", 204
    return render_template("partials/settings_delays.html", delays=delays_of(retry))


@bp.post("/settings")
@access.operator
def save_settings() -> ResponseReturnValue:
    stored = _store_load()
    submitted = Submitted.read(request.form, all_values(stored))
    if submitted.errors:
        return _again(submitted, stored, 422)
    changes = submitted.changes()
    if not changes:
        flash("No changes to save.", "info")
        return _back()
    if submitted.version != stored.version:
        return _again(submitted, stored, 409)
    try:
        saved = _save(changes, stored.version)
    except ConfigVersionError:
        return _again(submitted, _store_load(), 409)
    flash(
        f"Saved as version {saved.version}. Running workers check for changes every second.",
        "success",
    )
    return _back()


@bp.post("/settings/defaults")
@access.operator
def restore_default_settings() -> ResponseReturnValue:
    stored = _store_load()
    values = all_values(stored)
    changes = {name: value for name, value in DEFAULTS.items() if values[name] != value}
    if not changes:
        flash("Every setting already has its default.", "info")
        return _back()
    if question := ask_to_confirm(
        title="Restore the defaults",
        message=defaults_question(values),
        action="Restore defaults",
        back=url_for("web.settings"),
    ):
        return question
    try:
        saved = _save(changes, stored.version)
    except ConfigVersionError:
        flash("Somebody else saved at the same moment; nothing was restored.", "warning")
        return _back()
    flash(f"Defaults restored as version {saved.version}.", "success")
    return _back()


def settings_context(
    stored: StoredConfig, submitted: Submitted | None = None, status: int = 200
) -> dict[str, Any]:
    """Everything that the page and its refreshes show; after a refused form, with what it said."""
    values = all_values(stored)
    fields = fields_of(values) if submitted is None else submitted.merged(values)
    history = call(_store().history, SHOWN_VERSIONS + 1)
    texts = {field.option.name: field.value for field in fields}
    seen = request.args.get("seen", stored.version, type=int)
    since = stored.version if submitted is None else submitted.version or 0
    return {
        "version": stored.version,
        "fields": {field.option.name: field for field in fields},
        "sections": {
            "worker": [option.name for option in WORKER_OPTIONS],
            "retry": [option.name for option in RETRY_OPTIONS],
        },
        "BEFORE": BEFORE,
        "delays": delays_of(retry_from(texts) or stored.retry),
        "is_refused": status == 422,
        "differences": submitted.differences(values) if submitted and status == 409 else [],
        "their_names": _names(history, since),
        "newer": [change for change in history if change.version > seen],
        "newer_names": _names(history, seen),
        "all_default": values == DEFAULTS,
        "defaults_question": defaults_question(values),
        "versions": versions_of(history, SHOWN_VERSIONS),
        "overrides": _overrides(),
    }


def defaults_question(values: dict[str, int | float]) -> str:
    """What is asked before the defaults come back."""
    changes = [
        f"{OPTION_OF[name].label} from {plain_number(values[name])} to {plain_number(default)}"
        for name, default in DEFAULTS.items()
        if values[name] != default
    ]
    return f"This changes {', '.join(changes)}." if changes else "Every setting has its default."


def _again(submitted: Submitted, stored: StoredConfig, status: int) -> ResponseReturnValue:
    """The form once more, with everything that was typed."""
    context = settings_context(stored, submitted, status)
    return make_response(render_template("pages/settings.html", **context), status)


def _save(changes: dict[str, int | float], version: int) -> StoredConfig:
    return call(
        _store().update,
        **by_section(changes),
        expected_version=version,
        changed_by=current_operator() or UNNAMED_OPERATOR,
    )


def _overrides() -> list[Override]:
    """Where running workers go their own way, in the order of the form."""
    own = (Source.FLAG.value, Source.ENVIRONMENT.value)
    found = []
    for worker in sorted(list_workers(), key=lambda row: row.worker_id):
        if worker.state not in (WorkerState.ALIVE, WorkerState.LATE):
            continue
        for option in OPTIONS:
            chosen = worker.settings.get(option.name)
            if isinstance(chosen, dict) and chosen.get("source") in own:
                is_flag = chosen["source"] == Source.FLAG.value
                name = option.flag if is_flag else option.variable
                value = str(chosen.get("value"))
                found.append(Override(option, worker.name, worker.host, value, name))
    order = {option.name: position for position, option in enumerate(OPTIONS)}
    return sorted(found, key=lambda item: order[item.option.name])


def _names(history: Any, since: int) -> str:
    """Who saved after version *since*, the latest first."""
    names = dict.fromkeys(change.changed_by for change in history if change.version > since)
    return " and ".join(names) or "Somebody else"


def _store() -> ConfigStore:
    return ConfigStore(current_portal().pool)


def _store_load() -> StoredConfig:
    return call(_store().load)


def _back() -> ResponseReturnValue:
    return redirect(url_for("web.settings"), 303)
