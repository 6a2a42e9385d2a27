"""Experts: branches behind a router exchanged, with the router's rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eqtoolbox.weights.families.discrete import Permuting
from eqtoolbox.weights.parameter import Parameters


@dataclass(frozen=True, kw_only=True)
class ExpertPermutation(Permuting):
    """Experts e and e + 1 change places: their parameters, and row e of the router.

    n experts have n - 1 generating elements. Experts are parameters of their own, or slices of
    stacked ones.

    References:
        Shazeer et al. 2017 (arXiv 1701.06538) for the layer.
    """

    lists: tuple[tuple[str, ...], ...]  # for every role the parameters, one an expert
    stacked: tuple[str, ...]  # parameters with the experts along the first axis, the router's too

    @property
    def names(self) -> tuple[str, ...]:
        return (*(name for names in self.lists for name in names), *self.stacked)

    def permuted(self, params: Parameters, order: Tensor) -> dict[str, Tensor]:
        """Expert k replaced by expert order[k], in those parameters that are given."""
        moved = {n: params[n][order.to(params[n].device)] for n in self.stacked if n in params}
        for names in self.lists:
            for name, source in zip(names, order.tolist(), strict=True):
                if name in params and names[source] in params:
                    moved[name] = params[names[source]]
        return moved

    def rows(self, params: Parameters, which: Tensor | None = None) -> dict[str, Tensor]:
        """What each expert (of `which`) owns, (experts, entries), by the first one's parameter."""
        chosen = torch.arange(self.dimension + 1) if which is None else which
        found = {
            n: params[n].detach()[chosen.to(params[n].device)].reshape(len(chosen), -1)
            for n in self.stacked
        }
        for names in self.lists:
            own = [params[names[k]].detach().flatten() for k in chosen.tolist()]
            found[names[0]] = torch.stack(own)
        return found
