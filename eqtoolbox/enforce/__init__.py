"""Enforce: make a model obey a symmetry of its data, exactly where that can be had."""

from eqtoolbox.enforce.averaged import averaged, sampled
from eqtoolbox.enforce.canonicalised import canonicalised
from eqtoolbox.enforce.tied import Tied, tied

__all__ = ["Tied", "averaged", "canonicalised", "sampled", "tied"]
