"""Benchmarks: a script each, `python -m benchmarks.NAME`; see docs/performance.md."""
