"""All pages: each module named here adds its views to the blueprint `bp` when it is imported."""

from app.web import (  # noqa: F401
    api_docs,  # /api-docs
    audit,  # /audit
    commands,  # /commands
    dashboard,  # /
    invariants,  # /invariants
    lanes,  # /lanes
    load_tests,  # /load-tests
    login,  # /login, /logout
    operations,  # /troubleshooting/…, /commands/<id>/…: what operators do
    pauses,  # /pauses
    preferences,  # /preferences
    send,  # /send
    settings,  # /settings
    troubleshooting,  # /troubleshooting
    workers,  # /workers
)
