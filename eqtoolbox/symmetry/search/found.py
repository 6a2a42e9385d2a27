"""What a search found, with what it could not see."""

from collections.abc import Iterable

from eqtoolbox.symmetry.parameter import ParameterSymmetry


class Found(list[ParameterSymmetry]):
    """Symmetries as a list, with `notes`: sentences on what was and was not analysed."""

    def __init__(self, symmetries: Iterable[ParameterSymmetry] = (), notes: Iterable[str] = ()):
        super().__init__(symmetries)
        self.notes = tuple(notes)
