"""The database of the application: the embedded server or DATABASE_URL, PGMQ, migrations.

`python -m app.database --help` offers the same on the command line.
"""

from app.database.errors import DatabaseError, EmbeddedServerError, MigrationError
from app.database.opening import Database, Preparation, embedded_server, open_database
from app.database.urls import sqlalchemy_url, without_password

__all__ = [
    "Database",
    "DatabaseError",
    "EmbeddedServerError",
    "MigrationError",
    "Preparation",
    "embedded_server",
    "open_database",
    "sqlalchemy_url",
    "without_password",
]
