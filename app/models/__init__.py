"""What pages and API read: the mapped tables and the read queries, a module for each noun.

A query answers with frozen values, never with a session's objects (TestCommand alone has a life
of its own), within milliseconds at any number of commands.
"""

from app.models.audit import (
    EventFilters,
    EventListing,
    EventRow,
    find_commands,
    get_trail,
    search_events,
)
from app.models.base import db, init_app
from app.models.commands import (
    CommandFilters,
    CommandRow,
    command_row,
    count_by_status,
    domains,
    domains_of,
    domains_of_many,
    list_commands,
)
from app.models.details import CommandDetail, get_command_detail
from app.models.paging import Cursor, CursorError, Listing, Window
from app.models.relations import Conversation, Related, conversation
from app.models.test_command import TestCommand, send_test_command
from app.models.troubleshooting import (
    TROUBLED_FILTER_NAMES,
    GroupRow,
    RejectedRow,
    TroubledFilters,
    TroubledRow,
    count_troubled,
    error_codes,
    get_group_name,
    list_groups,
    list_rejected,
    list_troubled,
    queue_moment,
    troubled_keys,
)
from app.models.workers import (
    WorkerRow,
    WorkerState,
    count_active,
    get_worker,
    list_workers,
    setting_now,
)

__all__ = [
    "TROUBLED_FILTER_NAMES",
    "CommandDetail",
    "CommandFilters",
    "CommandRow",
    "Conversation",
    "Cursor",
    "CursorError",
    "EventFilters",
    "EventListing",
    "EventRow",
    "GroupRow",
    "Listing",
    "RejectedRow",
    "Related",
    "TestCommand",
    "TroubledFilters",
    "TroubledRow",
    "Window",
    "WorkerRow",
    "WorkerState",
    "command_row",
    "conversation",
    "count_active",
    "count_by_status",
    "count_troubled",
    "db",
    "domains",
    "domains_of",
    "domains_of_many",
    "error_codes",
    "find_commands",
    "get_command_detail",
    "get_group_name",
    "get_trail",
    "get_worker",
    "init_app",
    "list_commands",
    "list_groups",
    "list_rejected",
    "list_troubled",
    "list_workers",
    "queue_moment",
    "search_events",
    "send_test_command",
    "setting_now",
    "troubled_keys",
]
