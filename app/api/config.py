"""The stored configuration of the workers."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import BaseModel

from app.actions.inputs import ConfigChange
from app.api import bp
from app.api.routing import Answer, problem_response
from app.server import access
from app.server.portal import call, current_portal
from app.settings.configuration import ConfigStore, StoredConfig


class Config(Answer):
    """The complete configuration."""

    worker: dict[str, int | float]
    retry: dict[str, int | float]
    version: int


@bp.get("/config", responses={200: Config})
@access.viewer
def read() -> Any:
    """The stored configuration; what was never set has its default."""
    return _answer(call(_store().load))


@bp.put(
    "/config", responses={200: Config, 412: problem_response("Somebody has changed it meanwhile")}
)
@access.operator
def change(body: ConfigChange) -> Any:
    """Change some or all values; workers follow without a restart."""
    stored = call(
        _store().update,
        worker=_given(body.worker),
        retry=_given(body.retry),
        expected_version=body.version,
        changed_by=body.operator,
    )
    return _answer(stored)


def _store() -> ConfigStore:
    return ConfigStore(current_portal().pool)


def _given(section: BaseModel | None) -> dict[str, Any] | None:
    return None if section is None else section.model_dump(exclude_unset=True)


def _answer(stored: StoredConfig) -> Config:
    return Config(
        worker=dataclasses.asdict(stored.worker),
        retry=dataclasses.asdict(stored.retry),
        version=stored.version,
    )
