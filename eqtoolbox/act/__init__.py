"""Act: move or hold the parameters of a training along what its symmetries leave free."""

from eqtoolbox.act.anchor import anchor

__all__ = ["anchor"]
