"""Enforce: make a model obey a symmetry of its data, exactly where that can be had."""

from eqtoolbox.enforce.tied import Tied, tied

__all__ = ["Tied", "tied"]
