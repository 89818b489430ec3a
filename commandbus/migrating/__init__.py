"""Setting up a database for the bus: PGMQ and the migrations, as Flyway would apply them.

`setup_database` does it all. The other names are for programs that do it step by step or look at
how a database stands, as `python -m app.database` does.
"""

from commandbus.migrating.files import MigrationFile, migrations_folder, read_migrations
from commandbus.migrating.history import Comparison, Standing, State
from commandbus.migrating.obstacles import find_obstacles, refuse_obstacles
from commandbus.migrating.pgmq import install_pgmq, installed_pgmq, pgmq_is_installed
from commandbus.migrating.runner import (
    AppliedMigration,
    examine,
    migrate,
    migration_lock,
    validate,
)
from commandbus.migrating.setup import (
    DatabaseSetup,
    connect,
    connect_to_any_server,
    refuse_old_server,
    set_up,
    setup_database,
)
from commandbus.migrating.urls import build_url, parameters, without_password

__all__ = [
    "AppliedMigration",
    "Comparison",
    "DatabaseSetup",
    "MigrationFile",
    "Standing",
    "State",
    "build_url",
    "connect",
    "connect_to_any_server",
    "examine",
    "find_obstacles",
    "install_pgmq",
    "installed_pgmq",
    "migrate",
    "migration_lock",
    "migrations_folder",
    "parameters",
    "pgmq_is_installed",
    "read_migrations",
    "refuse_obstacles",
    "refuse_old_server",
    "set_up",
    "setup_database",
    "validate",
    "without_password",
]
