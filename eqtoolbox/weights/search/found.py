"""What a search found, with what it could not see."""

import math
from collections.abc import Iterable

from eqtoolbox.weights.parameter import ParameterSymmetry


class Found(list[ParameterSymmetry]):
    """Symmetries as a list, with `notes`: sentences on what was and was not analysed."""

    def __init__(self, symmetries: Iterable[ParameterSymmetry] = (), notes: Iterable[str] = ()):
        super().__init__(symmetries)
        self.notes = tuple(notes)

    def __str__(self) -> str:
        """The table of `eqtoolbox symmetries`: one line a symmetry, then the notes."""
        width = max((len(s.name) for s in self), default=4)
        lines = [f"{'family':15} {'name':{width}} {'dimension':>9} {'status':11} residual"]
        lines += [
            f"{s.family:15} {s.name:{width}} {s.dimension:>9} {s.status:11} {s.residual:.1e}"
            + _by_epsilon(s)
            for s in self
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _by_epsilon(symmetry: ParameterSymmetry) -> str:
    """What the epsilon of normalisations says of the residual, where it was asked."""
    if math.isnan(symmetry.epsilon):
        return ""
    left = "" if symmetry.status == "approximate" else ", not what was found"
    return f"  epsilon predicts {symmetry.epsilon:.1e}{left}"
