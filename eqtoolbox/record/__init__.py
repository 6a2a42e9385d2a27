"""A record: one row of a run, when it is due, and where it goes."""
