"""Sinks: places where records go."""
