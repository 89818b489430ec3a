"""The names that the specification gives the configuration; app.settings holds all of it."""

from app.settings.configuration import ConfigStore, RetryConfig, WorkerConfig

__all__ = ["ConfigStore", "RetryConfig", "WorkerConfig"]
