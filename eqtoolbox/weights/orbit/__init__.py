"""Orbits: which points of parameter space are the same function, and how near one is."""
