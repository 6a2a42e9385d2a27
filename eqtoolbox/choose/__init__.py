"""Choose: which symmetry the data have and a model would gain by, with the evidence for it."""

from eqtoolbox.choose.augmented import Augmented
from eqtoolbox.choose.suggesting import suggest
from eqtoolbox.choose.suggestion import Suggestion, Suggestions
from eqtoolbox.choose.widening import wider

__all__ = ["Augmented", "Suggestion", "Suggestions", "suggest", "wider"]
