"""All routes below /api/v1: each module named here adds its own to `bp` when it is imported."""

from app.api import (  # noqa: F401
    audit,  # /audit
    commands,  # /commands
    config,  # /config
    invariants,  # /invariants
    lanes,  # /lanes
    load_tests,  # /load-tests
    openapi,  # /openapi.json
    pauses,  # /pauses
    problems,  # how the bus's errors are answered
    stats,  # /stats
    tsq,  # /tsq
    tsq_jobs,  # /tsq/jobs
    workers,  # /workers
)
