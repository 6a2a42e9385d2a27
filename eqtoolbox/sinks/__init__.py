"""Sinks: places where records go."""

from eqtoolbox.sinks.adapter import as_sink

__all__ = ["as_sink"]
