"""Load-test runs of the web application: begun by a request, and brought to their end behind it."""

from __future__ import annotations

import logging
from functools import partial

from app.loadtest.generating import BulkOrder, BulkResult
from app.loadtest.runs import Origin, RunGivenUpError, create_run, generate_run, settle_runs
from app.server.errors import Problem
from app.server.portal import current_portal, unless_refused

logger = logging.getLogger(__name__)

AT_ONCE = 10_000
"""So many commands are generated before a request is answered; more go on behind it."""
AT_ONCE_SECONDS = 60.0


def begin(
    order: BulkOrder, *, origin: Origin, name: str | None = None, started_by: str = ""
) -> BulkResult | None:
    """Record *order* as a run and generate its commands.

    Up to AT_ONCE commands have been sent when this returns what was made; a larger run goes on in
    the background, which returns None. When this process ends, the run ends as cancelled; when it
    dies, as failed. Either way what was sent stays. Raises what sending raises, and Problem 503
    where this process stood still for so long that others recorded the end of the run.
    """
    portal = current_portal()
    portal.call(create_run, portal.pool, order, origin=origin, name=name, started_by=started_by)
    generation = partial(generate_run, portal.pool, order, is_cancelled=portal.closing.is_set)
    if order.count <= AT_ONCE:
        try:
            return portal.call_within(AT_ONCE_SECONDS, generation)
        except RunGivenUpError as exc:
            raise Problem(503, "run_given_up", str(exc), run_id=str(order.batch_id)) from exc

    async def go_on() -> None:
        try:
            await generation()
        except RunGivenUpError as exc:
            logger.warning("run_given_up", extra={"reason": str(exc)})

    portal.start(f"run {order.batch_id}", go_on)
    return None


def settle() -> None:
    """Record what became of the runs whose commands have all ended; whoever looks does it."""
    portal = current_portal()
    with unless_refused():
        portal.call(settle_runs, portal.pool)
