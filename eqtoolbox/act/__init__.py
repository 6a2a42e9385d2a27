"""Act: move or hold the parameters of a training along what its symmetries leave free."""

from eqtoolbox.act.anchors import anchor
from eqtoolbox.act.guards import guard

__all__ = ["anchor", "guard"]
