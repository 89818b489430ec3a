"""Test commands: what they may do, their handler, their table, and sending them."""
