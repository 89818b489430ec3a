"""The stored configuration of the workers."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import BaseModel, Field, create_model

from app.actions.inputs import DEFAULT_OPERATOR, Body, OperatorName
from app.api import bp
from app.api.routing import Answer, problem_response
from app.server import access
from app.server.portal import call, current_portal
from app.settings.configuration import ConfigStore, RetryConfig, StoredConfig, WorkerConfig
from app.settings.options import options_of


def _section(name: str, doc: str, config: type) -> type[BaseModel]:
    """A model of the options that *config* declares, each with its range; all may be left out."""
    fields: dict[str, Any] = {
        option.name: (
            int if option.whole else float,
            Field(option.default, ge=option.low, le=option.high, description=option.help),
        )
        for option in options_of(config)
    }
    return create_model(name, __base__=Body, __doc__=doc, **fields)


WorkerSection = _section("WorkerSection", "How a worker works.", WorkerConfig)
RetrySection = _section("RetrySection", "How failed commands are retried.", RetryConfig)


class ConfigChange(Body):
    """The values to change; what is left out stays."""

    worker: WorkerSection | None = Field(  # type: ignore[valid-type]
        None, json_schema_extra={"example": {"concurrency": 8}}
    )
    retry: RetrySection | None = None  # type: ignore[valid-type]
    version: int | None = Field(
        None, ge=1, description="The version that was read; 412 where it is no longer the current"
    )
    operator: OperatorName = DEFAULT_OPERATOR


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
