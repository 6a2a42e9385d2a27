"""A network averaged over a finite group: exactly equivariant, at one forward an element."""

import torch
from torch import Tensor, nn

from eqtoolbox.symmetry.claim import Equivariance


class Averaged(nn.Module):
    """The Reynolds average x -> mean_g R_g^-1 f(S_g x) of a network over all elements.

    All images go through the network as one batch, so that batch statistics are those of the orbit.

    Args:
        network: one tensor -> one tensor.
        claim: of a finite group; its actions are those of the average.

    Example:
        >>> from eqtoolbox.symmetry.actions.action import flip, trivial
        >>> from eqtoolbox.symmetry.groups.group import Flip
        >>> mean = Averaged(nn.Flatten(), Equivariance(Flip(), flip, trivial))
        >>> mean(torch.tensor([[[1.0, 3.0]]]))
        tensor([[2., 2.]])
    """

    def __init__(self, network: nn.Module, claim: Equivariance) -> None:
        super().__init__()
        self.network, self.claim = network, claim
        self.elements = list(claim.group.elements())

    def forward(self, x: Tensor) -> Tensor:
        orbit = torch.cat([self.claim.input_action(g, x) for g in self.elements])
        answers = self.network(orbit).chunk(len(self.elements))
        inverse = self.claim.group.inverse
        back = [
            self.claim.output_action(inverse(g), y)
            for g, y in zip(self.elements, answers, strict=True)
        ]
        return torch.stack(back).mean(0)
