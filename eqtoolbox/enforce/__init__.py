"""Enforce: make a model obey a symmetry of its data, exactly where that can be had."""

from eqtoolbox.enforce.averaged import averaged, sampled

__all__ = ["averaged", "sampled"]
