"""Actions: what an element of a group does to data."""

from eqtoolbox.symmetry.actions.action import (
    Action,
    check_action,
    dihedral,
    flip,
    quarter_turn,
    roll,
    trivial,
)

__all__ = ["Action", "check_action", "dihedral", "flip", "quarter_turn", "roll", "trivial"]
