"""Act: move or hold the parameters of a training along what its symmetries leave free."""

from eqtoolbox.act.aligning import align
from eqtoolbox.act.anchors import anchor
from eqtoolbox.act.balanced import Balanced
from eqtoolbox.act.balancing import balance
from eqtoolbox.act.guards import guard
from eqtoolbox.act.moving import Moved, move
from eqtoolbox.act.path import barrier

__all__ = ["Balanced", "Moved", "align", "anchor", "balance", "barrier", "guard", "move"]
