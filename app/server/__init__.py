"""What every request passes: errors, access, identity, limits, and the way to the database."""
