"""Who uses a program in the terminal."""

from __future__ import annotations

import getpass


def login_name() -> str:
    """The name of the user whose program this is; empty where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return ""
