"""The version of the library; pyproject.toml reads it here."""

VERSION = "1.0.0"
