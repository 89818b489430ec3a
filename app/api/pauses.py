"""Pauses: what is paused, pause a domain or a command type, resume."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.actions import inputs
from app.actions import pauses as actions
from app.api import bp
from app.api.routing import Answer
from app.models import parked
from app.server import access, identity


class PausePath(BaseModel):
    """The address of one pause."""

    pause_id: int = Field(ge=1)


class PauseItem(Answer):
    """A pause in force."""

    pause_id: int
    domain: str
    command_type: str | None = Field(description="null: the whole domain")
    reason: str
    paused_by: str
    paused_at: datetime
    ends_at: datetime | None = Field(description="null: when somebody resumes it")


class ListedPause(PauseItem):
    """A pause in force, and what waits for its end."""

    waiting: int = Field(description="Pending commands of the domain; of a type, those put aside")
    waiting_is_exact: bool = Field(description="false: there are more")


class PauseList(Answer):
    """The pauses in force, the latest first."""

    pauses: list[ListedPause]


class Resumed(Answer):
    """The pause that was ended."""

    pause_id: int


@bp.get("/pauses", responses={200: PauseList})
@access.viewer
def list_pauses(query: inputs.DomainQuery) -> Any:
    """What is paused now."""
    return PauseList(
        pauses=[ListedPause.model_validate(row) for row in parked.pauses(query.domain)]
    )


@bp.post("/pauses", responses={201: PauseItem})
@access.operator
def pause(body: inputs.NewPause) -> Any:
    """Pause a domain, or one command type of it; a pause of the same is replaced."""
    made = actions.pause(
        body.domain,
        body.command_type,
        reason=body.reason,
        operator=body.operator,
        seconds=body.seconds,
    )
    return PauseItem.model_validate(made), 201


@bp.delete("/pauses/<worker_id:pause_id>", responses={200: Resumed})
@access.operator
def resume(path: PausePath, query: inputs.ResumeQuery) -> Any:
    """End a pause: what waited for it goes on by itself."""
    actions.resume(path.pause_id, identity.recorded_name(query.operator))
    return Resumed(pause_id=path.pause_id)
