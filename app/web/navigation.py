"""What the sidebar lists."""

from __future__ import annotations

from typing import NamedTuple

from flask import request


class Item(NamedTuple):
    """A page family: where it starts, and the paths that belong to it."""

    label: str
    path: str
    icon: str


class Link(NamedTuple):
    """An item as the sidebar shows it for this request."""

    label: str
    url: str
    icon: str
    is_current: bool


GROUPS = (
    ("Overview", (Item("Dashboard", "/", "dashboard"),)),
    (
        "Operate",
        (
            Item("Send command", "/send", "send"),
            Item("Commands", "/commands", "list"),
            Item("Troubleshooting", "/troubleshooting", "alert"),
            Item("Lanes", "/lanes", "layers"),
            Item("Pauses", "/pauses", "hourglass"),
            Item("Audit trail", "/audit", "history"),
        ),
    ),
    (
        "Run",
        (Item("Workers", "/workers", "cpu"), Item("Load tests", "/load-tests", "gauge")),
    ),
    (
        "System",
        (
            Item("Settings", "/settings", "sliders"),
            Item("Invariants", "/invariants", "shield"),
            Item("API", "/api-docs", "braces"),
        ),
    ),
)


def groups() -> list[tuple[str, list[Link]]]:
    """The sidebar's groups, with the item marked that the current page belongs to."""
    return [
        (
            title,
            [
                Link(item.label, request.script_root + item.path, item.icon, _is_current(item))
                for item in items
            ],
        )
        for title, items in GROUPS
    ]


def _is_current(item: Item) -> bool:
    if item.path == "/":
        return request.path == "/"
    return request.path == item.path or request.path.startswith(f"{item.path}/")
