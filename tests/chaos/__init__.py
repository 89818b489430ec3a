"""Faults staged for real, and a checker that looks at what they left behind."""
