"""Load tests: generating commands, runs as records, their comparison, clean-up and report."""
