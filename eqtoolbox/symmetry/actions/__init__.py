"""Actions: what an element of a group does to data."""
