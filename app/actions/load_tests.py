"""Load-test runs of the web application: begun by a request, and brought to their end behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from app.actions.inputs import BulkCommands
from app.loadtest.generating import BulkOrder, BulkResult
from app.loadtest.runs import Origin, RunGivenUpError, create_run, generate_run, settle_runs
from app.server.errors import Problem
from app.server.portal import current_portal, unless_refused
from app.testcommand.behaviors import BehaviorDistribution, BehaviorType

logger = logging.getLogger(__name__)

AT_ONCE = 10_000
"""So many commands are generated before a request is answered; more go on behind it."""
AT_ONCE_SECONDS = 60.0


def order_of(body: BulkCommands, timeout_ms: Callable[[], int | None]) -> BulkOrder:
    """What *body* asks for.

    *timeout_ms* says how long the timeouts of a distribution run; None: as long as the others. It
    is called only where there are any.
    """
    behavior, distribution = body.behavior, body.behavior_distribution
    if behavior is not None and body.delay_ms is not None:
        behavior = behavior.model_copy(update={"execution_time_ms": body.delay_ms})
    if behavior is None and distribution is None:
        distribution = BehaviorDistribution({BehaviorType.SUCCESS: 100})
    has_timeouts = distribution is not None and BehaviorType.TIMEOUT in distribution.root
    return BulkOrder(
        count=body.count,
        behavior=behavior,
        distribution=distribution,
        delay_ms=body.delay_ms or 0,
        timeout_ms=timeout_ms() if has_timeouts else None,
        max_attempts=body.max_attempts,
        lanes=body.lanes,
        groups=body.groups,
    )


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
