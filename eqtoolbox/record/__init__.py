"""A record: one row of a run, when it is due, and where it goes."""

from eqtoolbox.record.record import Record

__all__ = ["Record"]
