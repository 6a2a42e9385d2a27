"""Act: move or hold the parameters of a training along what its symmetries leave free."""

from eqtoolbox.act.aligning import align
from eqtoolbox.act.path import barrier

__all__ = ["align", "barrier"]
