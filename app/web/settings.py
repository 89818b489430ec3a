"""Settings of workers and retries, the workers that override them, and their history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from flask import flash, redirect, render_template, request, url_for
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
from app.testcommand.store import ConfigurationChange
from app.web import bp
from app.web.remembered import recorded_operator
from app.web.rendering import PageContext, ask_to_confirm, render_page
from app.web.settings_form import (
    BEFORE,
    DEFAULTS,
    OPTION_OF,
    OPTIONS,
    Delays,
    Difference,
    Field,
    Submitted,
    Version,
    all_values,
    by_section,
    delays_of,
    fields_of,
    retry_from,
    versions_of,
)

SHOWN_VERSIONS = 15


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
        SettingsPage(),
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


class SettingsPage(PageContext):
    """The values of the page and its parts; after a refused form, with what it said."""

    BEFORE = BEFORE
    sections: ClassVar = {
        "worker": [option.name for option in WORKER_OPTIONS],
        "retry": [option.name for option in RETRY_OPTIONS],
    }

    def __init__(
        self,
        stored: StoredConfig | None = None,
        submitted: Submitted | None = None,
        status: int = 200,
    ) -> None:
        self._given, self._submitted, self._status = stored, submitted, status

    @cached_property
    def _stored(self) -> StoredConfig:
        return _store_load() if self._given is None else self._given

    @cached_property
    def _values(self) -> dict[str, int | float]:
        return all_values(self._stored)

    @cached_property
    def _fields(self) -> list[Field]:
        if self._submitted is None:
            return fields_of(self._values)
        return self._submitted.merged(self._values)

    @cached_property
    def _history(self) -> Sequence[ConfigurationChange]:
        return call(_store().history, SHOWN_VERSIONS + 1)

    @property
    def version(self) -> int:
        """The version that is stored."""
        return self._stored.version

    @property
    def fields(self) -> dict[str, Field]:
        """The fields of the form by name."""
        return {field.option.name: field for field in self._fields}

    @property
    def delays(self) -> Delays:
        """The delays that the values of the form give."""
        texts = {field.option.name: field.value for field in self._fields}
        return delays_of(retry_from(texts) or self._stored.retry)

    @property
    def is_refused(self) -> bool:
        """Whether values of the form were not accepted."""
        return self._status == 422

    @property
    def differences(self) -> list[Difference]:
        """What others saved while the form was open."""
        if self._submitted is None or self._status != 409:
            return []
        return self._submitted.differences(self._values)

    @property
    def their_names(self) -> str:
        """Who saved while the form was open."""
        form = self._submitted
        return _names(self._history, self.version if form is None else form.version or 0)

    @property
    def _seen(self) -> int:
        """The version that the reader's page shows."""
        return request.args.get("seen", self.version, type=int)

    @property
    def newer(self) -> list[ConfigurationChange]:
        """What was saved since the reader's page was made."""
        return [change for change in self._history if change.version > self._seen]

    @property
    def newer_names(self) -> str:
        """Who saved that."""
        return _names(self._history, self._seen)

    @property
    def all_default(self) -> bool:
        """Whether every setting has its default."""
        return self._values == DEFAULTS

    @property
    def defaults_question(self) -> str:
        """The question before the defaults are restored."""
        return defaults_question(self._values)

    @property
    def versions(self) -> list[Version]:
        """The latest versions."""
        return versions_of(self._history, SHOWN_VERSIONS)

    @property
    def overrides(self) -> list[Override]:
        """Settings that running workers do not follow."""
        return _overrides()


def defaults_question(values: dict[str, int | float]) -> str:
    """The question before the defaults are restored."""
    changes = [
        f"{OPTION_OF[name].label} from {plain_number(values[name])} to {plain_number(default)}"
        for name, default in DEFAULTS.items()
        if values[name] != default
    ]
    return f"This changes {', '.join(changes)}." if changes else "Every setting has its default."


def _again(submitted: Submitted, stored: StoredConfig, status: int) -> ResponseReturnValue:
    """The form once more, with everything that was typed."""
    context = SettingsPage(stored, submitted, status)
    return render_page("pages/settings.html", context, status=status)


def _save(changes: dict[str, int | float], version: int) -> StoredConfig:
    return call(
        _store().update,
        **by_section(changes),
        expected_version=version,
        changed_by=recorded_operator(),
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


def _names(history: Sequence[ConfigurationChange], since: int) -> str:
    """Who saved after version *since*, the latest first."""
    names = dict.fromkeys(change.changed_by for change in history if change.version > since)
    return " and ".join(names) or "Somebody else"


def _store() -> ConfigStore:
    return ConfigStore(current_portal().pool)


def _store_load() -> StoredConfig:
    return call(_store().load)


def _back() -> ResponseReturnValue:
    return redirect(url_for("web.settings"), 303)
