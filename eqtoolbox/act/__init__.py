"""Act: move or hold the parameters of a training along what its symmetries leave free."""

from eqtoolbox.act.balance import balance
from eqtoolbox.act.balanced import Balanced
from eqtoolbox.act.move import Moved, move

__all__ = ["Balanced", "Moved", "balance", "move"]
