"""The price of a violation: what averaging predictions over the group would save of the loss."""

import math
from collections.abc import Callable
from operator import itemgetter
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.gradients import valued
from eqtoolbox.symmetry.orbit import wide
from eqtoolbox.symmetry.structure import Layout, Tree, on_tensors, tensors

# of a tensor or a tree, convex and >= 0
Loss = Annotated[Callable[[Any], Tensor], takes(1, "of the outputs")]

_ADDITIVE = 0.01  # misfit of the sum of the parts to the whole, from which the loss is no sum
_ROUNDING = 1e-6  # of the loss itself, in float32


@checked
@torch.no_grad()
def percent_of_loss(pulled: Tree, loss: Loss) -> float:
    """What the violation of a symmetry costs, in percent of the loss averaged over the orbit.

        100 (E_g l(f_g) - l(E_g f_g)) / E_g l(f_g)

    For a convex loss the gap is >= 0 (Jensen); for the mean squared error it is exactly the
    variance over the orbit, E_g|f_g - y|^2 = |E_g f_g - y|^2 + E_g|f_g - E_g f_g|^2. It
    assumes that x and S_g x are equally likely and that the loss does not prefer one of them. Of K
    elements drawn from a larger group it is too small by about 1 / K of itself.

    Args:
        pulled: (K, batch, ...), the identity among the K elements, or a tree of such; see
            `pulled_back`.
        loss: convex and >= 0, (batch, ...) -> one number.

    Returns:
        Percent in [0, 100]; NaN when the mean loss is not a positive number.

    Raises:
        ValueError: no predictions, or the loss returns more than one number.

    Example:
        >>> pulled = torch.tensor([[[1.0]], [[-1.0]]])
        >>> percent_of_loss(pulled, lambda y: y.square().mean())
        100.0
    """
    shapes = [tuple(x.shape) for x in tensors(pulled)]
    if not shapes or any(len(shape) < 2 or shape[0] == 0 for shape in shapes):
        got = ", ".join(map(str, shapes))
        raise ValueError(f"pulled must be (K, batch, ...) with K >= 1, got {got or type(pulled)}")
    twirl = on_tensors(lambda y: y.to(wide(y), torch.float64).mean(dim=0).to(y), pulled)
    each = [on_tensors(itemgetter(i), pulled) for i in range(shapes[0][0])]
    return gap([value(loss, prediction) for prediction in each], value(loss, twirl))


class Price:
    """Running losses of the predictions f_g, of the whole output and of each of its leaves."""

    def __init__(self, loss: Loss, outputs: Tree, layout: Layout | None) -> None:
        self.loss, self.layout = loss, layout
        self.base, self.spec = tree_flatten(outputs)
        self.losses = [value(loss, outputs)]
        names = () if layout is None or len(layout.names) < 2 else layout.names
        self.leaves: dict[str, list[float]] = {name: list(self.losses) for name in names}

    def add(self, pulled: Tree) -> None:
        self.losses.append(value(self.loss, pulled))
        for i, found in enumerate(self.leaves.values()):
            found.append(self._with(pulled, i))

    @property
    def mean(self) -> float:
        """The mean loss so far."""
        return math.fsum(self.losses) / len(self.losses)

    def percent(self, twirl: Tree) -> float:
        """Percent of the loss that the violation of all leaves together costs."""
        return gap(self.losses, value(self.loss, twirl))

    def parts(self, twirl: Tree) -> dict[str, float]:
        """Percent of the whole loss for each leaf; none where the loss is no sum over leaves.

        A leaf's gap is taken with the others at f(x): in a sum over leaves they drop out.
        """
        mean = math.fsum(self.losses) / len(self.losses)
        if not self.leaves or not 0.0 < mean < math.inf:
            return {}
        gaps = {
            name: math.fsum(found) / len(found) - self._with(twirl, i)
            for i, (name, found) in enumerate(self.leaves.items())
        }
        whole = mean - value(self.loss, twirl)
        misfit, size = abs(math.fsum(gaps.values()) - whole), sum(map(abs, gaps.values()))
        if not misfit <= _ADDITIVE * size + _ROUNDING * mean:
            return {}
        return {name: 100.0 * found / mean for name, found in gaps.items()}

    def _with(self, outputs: Tree, index: int) -> float:
        """The loss when f(x) is `outputs` in one leaf."""
        leaves = list(self.base)
        leaves[index] = tree_flatten(outputs)[0][index]
        return value(self.loss, tree_unflatten(leaves, self.spec))


def gap(losses: list[float], of_twirl: float) -> float:
    """(mean loss - loss of the mean) / mean loss, in percent; NaN without a positive mean."""
    mean = math.fsum(losses) / len(losses)
    return 100.0 * (mean - of_twirl) / mean if 0.0 < mean < math.inf else math.nan


def value(loss: Loss, outputs: Tree) -> float:
    """The loss as a number.

    Raises:
        ValueError: it is more than one.
    """
    found = torch.as_tensor(valued(loss, outputs)).detach()
    if found.numel() != 1:
        raise ValueError(f"loss must return one number, got shape {tuple(found.shape)}; reduce it")
    return float(found)
