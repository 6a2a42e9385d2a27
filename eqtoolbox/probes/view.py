"""The model of a step as the function that a claim speaks of."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from eqtoolbox.probes.claims import Claim, require_tensor, structured
from eqtoolbox.probes.prediction import Prediction
from eqtoolbox.reading import Reading, is_open, opened
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.culprit import Culprit, culprit


@dataclass(frozen=True)
class View:
    """First argument -> logits; for structured claims all arguments -> the whole output."""

    f: Prediction
    whole: bool

    @classmethod
    def of(cls, f: Prediction, entry: Claim) -> "View":
        """What the entry speaks of.

        Raises:
            NotApplicable: it wants one tensor, and the model is given something else.
        """
        if not structured(entry):
            require_tensor(f.inputs)
        return cls(f, structured(entry))

    @property
    def inputs(self) -> Any:
        return self.f.arguments if self.whole else self.f.inputs

    @property
    def outputs(self) -> Any:
        return opened(self.f.call.output) if self.whole else self.f.outputs

    @property
    def function(self) -> Callable[[Any], Any]:
        return self.f.of_arguments if self.whole else self.f.of_inputs

    @property
    def images(self) -> bool:
        """Whether the output is one tensor of images."""
        return isinstance(self.outputs, Tensor) and self.outputs.dim() >= 4

    @property
    def priced(self) -> bool:
        """Whether the loss, a function of the model's whole output, is one of `outputs`."""
        return self.whole or isinstance(self.f.call.output, Tensor)

    @property
    def model(self) -> nn.Module:
        """The model as a module that is called on `inputs`."""
        given = self.f.given
        plain = not self.whole or is_open(given)
        return self.f.model if plain else Reading(self.f.model, given)

    def own_name(self, layer: str) -> str:
        """The name of a layer of `model` in the model that is trained."""
        return layer.removeprefix("model.") if isinstance(self.model, Reading) else layer

    def culprit(self, symmetry: Equivariance) -> Culprit | None:
        """The first broken layer; None where the model cannot be run on the inputs alone."""
        if len(self.f.call.args) != 1 and not self.whole:
            return None
        try:
            found = culprit(self.model, self.inputs, symmetry)
        except (RuntimeError, ValueError, TypeError, LookupError):
            return None
        named = tuple(replace(e, layer=self.own_name(e.layer)) for e in found.layers)
        first = None if found.layer is None else self.own_name(found.layer)
        return replace(found, layer=first, layers=named)
