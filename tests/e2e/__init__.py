"""The promises of the specification, kept end to end: real database, real workers."""
