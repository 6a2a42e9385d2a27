"""Enforce: make a model obey a symmetry of its data, exactly where that can be had."""

from eqtoolbox.enforce.averaged import averaged, sampled
from eqtoolbox.enforce.canonicalised import canonicalised

__all__ = ["averaged", "canonicalised", "sampled"]
