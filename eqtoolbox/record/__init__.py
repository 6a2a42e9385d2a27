"""A record: one row of a run, when it is due, and where it goes."""

from eqtoolbox.moved import names

__getattr__ = names(__name__, {"Record": "eqtoolbox.record.record"})
