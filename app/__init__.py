"""The demo, end-to-end and load-test application around the command bus.

Importing this package imports no web framework, so that a worker process never loads one.
"""
