"""TorchMetrics: the equivariance error of a model as a metric that adds up over batches."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from eqtoolbox.expect.bounds import count
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Seed
from eqtoolbox.integrations.extra import extra
from eqtoolbox.record.record import Verdict, verdict
from eqtoolbox.replay.isolation import evaluation
from eqtoolbox.replay.thread.scope import current
from eqtoolbox.symmetry.claim import Claimed
from eqtoolbox.symmetry.equivariance import FEWEST, equivariance_error

with extra("torchmetrics", "eqtoolbox.integrations.torchmetrics"):
    from torchmetrics import Metric


class EquivarianceError(Metric):
    """Relative violation of f(S_g x) = R_g f(x) over all batches of an epoch, and its floor.

        error = sqrt(sum_{batches, g, x} |f(S_g x) - R_g f(x)|^2 / sum |R_g f(x)|^2)

    The sums are kept for each group element, and every batch and process meets the same elements:
    the value is that of `equivariance_error` on all the data at once, however it is split. The
    floor is the largest of the batches'. A model is called in evaluation mode, without gradients.

    Args:
        claim: the symmetry.
        samples: group elements at most, the identity among them, >= 2.
        seed: of the elements that are drawn, where there are more.
        how: of `torchmetrics.Metric`, such as `sync_on_compute`.

    Example:
        >>> from eqtoolbox.symmetry import Cyclic, Equivariance
        >>> from eqtoolbox.symmetry.actions.action import quarter_turn, trivial
        >>> metric = EquivarianceError(Equivariance(Cyclic(4), quarter_turn, trivial))
        >>> for x in torch.randn(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)):
        ...     metric.update(lambda x: x.abs().sum((1, 2, 3))[:, None], x)
        >>> bool(metric.compute() < 1e-6), metric.verdict()
        (True, 'holds')
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    squares: Tensor  # (elements,), float64
    energies: Tensor  # (elements,), float64
    floor: Tensor  # (), float64

    @checked
    def __init__(
        self,
        claim: Claimed,
        *,
        samples: Annotated[int, count(FEWEST)] = 8,
        seed: Seed = 0,
        **how: Any,
    ) -> None:
        super().__init__(**how)
        self.claim, self.samples, self.seed = claim, samples, seed
        order = claim.group.order
        used = min(samples, samples if order is None else order) - 1
        self._fits: set[str] = set()  # shapes whose actions were looked at
        self._last = (float("nan"), float("nan"))
        for name in ("squares", "energies"):
            zeros = torch.zeros(used, dtype=torch.float64)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")
        self.add_state("floor", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")

    def update(self, function: Callable[[Any], Tensor], inputs: Any) -> None:
        """Add a batch; where a probe evaluates the loss again that this is a part of, nothing.

        Args:
            function: f, (batch, ...) -> (batch, ...), such as the model.
            inputs: x, as `equivariance_error` takes them.

        Raises:
            TypeError: f returns several tensors, whose errors have no common unit.
        """
        if current() is not None:
            return
        shape = repr(getattr(inputs, "shape", None))
        mode = evaluation(function) if isinstance(function, nn.Module) else nullcontext()
        with mode:
            found = equivariance_error(
                function, inputs, self.claim, samples=self.samples,
                generator=torch.Generator().manual_seed(self.seed),
                check=shape == "None" or shape not in self._fits,
            )  # fmt: skip
        if not found.sums:
            raise TypeError(
                "EquivarianceError adds up batches of one output tensor, got several; give a "
                "function that returns one of them"
            )
        self._fits.add(shape)
        self.squares += self.squares.new_tensor(found.sums[0])
        self.energies += self.energies.new_tensor(found.sums[1])
        self.floor = torch.maximum(self.floor, self.floor.new_tensor(found.floor))

    def compute(self) -> Tensor:
        """The error; NaN before the first batch, or where all outputs are zero."""
        error = (self.squares.sum() / self.energies.sum()).sqrt()
        self._last = float(error), float(self.floor)
        return error

    def verdict(self) -> Verdict:
        """Whether the symmetry holds on what was seen: up to 3 floors it does, above 10 not."""
        self.compute()
        return verdict(*self._last)
