"""What can go wrong between a setting and a migrated database, each told in one line."""

from __future__ import annotations

from commandbus import DatabaseSetupError
from commandbus import MigrationError as MigrationError

# The rest of the application says it shorter.
DatabaseError = DatabaseSetupError


class EmbeddedServerError(DatabaseError):
    """The embedded server cannot be created, started, joined or stopped."""

    @property
    def may_pass(self) -> bool:
        return True
