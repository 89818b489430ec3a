"""Chores of the developers, never imported by the program."""
