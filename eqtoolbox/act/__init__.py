"""Act: move or hold the parameters of a training along what its symmetries leave free."""

from eqtoolbox.act.balanced import Balanced
from eqtoolbox.act.balancing import balance
from eqtoolbox.act.moving import Moved, move

__all__ = ["Balanced", "Moved", "balance", "move"]
