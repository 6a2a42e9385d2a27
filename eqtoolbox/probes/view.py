"""The model of a step as the function that a claim speaks of."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from eqtoolbox.probes.claims import Claim, require_tensor, structured
from eqtoolbox.probes.prediction import Prediction
from eqtoolbox.replay.parts import in_parts
from eqtoolbox.replay.reading import Reading, argument_names, is_open, opened
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.culprit import Culprit, blamed
from eqtoolbox.symmetry.each import batch_of_one, one_sample
from eqtoolbox.symmetry.each import whole as whole_loss
from eqtoolbox.symmetry.layers import Unmoved
from eqtoolbox.symmetry.structure import batch_size


@dataclass(frozen=True)
class View:
    """First argument -> logits; for structured claims all arguments -> the whole output.

    Of a batch whose rows are parts of samples, both are batches of one.
    """

    f: Prediction
    whole: bool
    parts: bool = False

    @classmethod
    def of(cls, f: Prediction, entry: Claim) -> "View":
        """What the entry speaks of.

        Raises:
            NotApplicable: it wants one tensor, and the model is given something else.
            ValueError: it names a leaf with the samples of rows that is not there.
        """
        if not structured(entry):
            require_tensor(f.inputs)
        rows = entry.rows if isinstance(entry, Equivariance) else "auto"
        parts = in_parts(f.arguments, rows, argument_names(f.model))
        return cls(f, structured(entry), parts)

    @property
    def inputs(self) -> Any:
        inputs = self.f.arguments if self.whole else self.f.inputs
        return batch_of_one(inputs) if self.parts else inputs

    @property
    def outputs(self) -> Any:
        outputs = opened(self.f.call.output) if self.whole else self.f.outputs
        return batch_of_one(outputs) if self.parts else outputs

    @property
    def function(self) -> Callable[[Any], Any]:
        function = self.f.of_arguments if self.whole else self.f.of_inputs
        return one_sample(function) if self.parts else function

    def loss(self, loss: Callable[[Any], Tensor] | None) -> Callable[[Any], Tensor] | None:
        """The loss of the model's whole output as one of `outputs`; None where it is not."""
        if loss is None or not self.priced:
            return None
        return whole_loss(loss) if self.parts else loss

    def claim(self, symmetry: Equivariance) -> Equivariance:
        """The claim on batches as `inputs` gives them."""
        return replace(symmetry, rows="samples")

    @property
    def samples(self) -> int:
        """How many there are."""
        return 1 if self.parts else batch_size(self.inputs)

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
        if self.parts or (len(self.f.call.args) != 1 and not self.whole):
            return None
        try:
            model, inputs = self.model, self.inputs
            known = f"unmoved, {'whole' if self.whole else 'first'}"
            if known not in self.f.made:
                self.f.made[known] = Unmoved.of(model, inputs)
            found = blamed(model, inputs, symmetry, unmoved=self.f.made[known])
        except (RuntimeError, ValueError, TypeError, LookupError):
            return None
        named = tuple(replace(e, layer=self.own_name(e.layer)) for e in found.layers)
        first = None if found.layer is None else self.own_name(found.layer)
        return replace(found, layer=first, layers=named)
