"""A network that is shown its training samples moved: data augmentation for any training loop."""

from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from eqtoolbox.expect.bounds import instance
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count, Seed
from eqtoolbox.replay.reading import closed, opened
from eqtoolbox.symmetry.claim import Claimed
from eqtoolbox.symmetry.structure import Tree, batch_size, on_tensors

Network = Annotated[nn.Module, instance("a module")]


class Augmented(nn.Module):
    """In training x -> R_g^-1 f(S_g x) with random g, in evaluation f itself.

    Its loss is that of (S_g x, R_g y) wherever the loss does not change when both of its arguments
    move. Samples are dealt among a few elements a batch. Only the answers on moved samples are
    learned, so equivariance stays approximate; at the price of one forward.

    Args:
        model: that is called like this one: its one argument, the tuple of several, or the dict of
            those given by name is what moves.
        claim: which samples look alike; its actions move inputs, and outputs back.
        elements: group elements a batch, at most.
        seed: of a stream of its own.

    Raises:
        ValueError: a group whose elements cannot be undone.

    Example:
        >>> from eqtoolbox.symmetry.actions.action import flip
        >>> from eqtoolbox.symmetry.claim import Equivariance
        >>> from eqtoolbox.symmetry.groups.group import Flip
        >>> model = Augmented(nn.Flatten(), Equivariance(Flip(), flip, flip))
        >>> model(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
        tensor([[1., 2.],
                [3., 4.]])
    """

    @checked
    def __init__(
        self, model: Network, claim: Claimed, *, elements: Count = 8, seed: Seed = 0
    ) -> None:
        super().__init__()
        if not claim.group.invertible:
            raise ValueError(
                f"{claim.group.name} cannot be undone: move inputs and targets before the batch "
                "is made"
            )
        self.model, self.claim, self.count = model, claim, elements
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        if not self.training:
            return self.model(*args, **kwargs)
        given: Any = kwargs or (args if len(args) > 1 else args[0])
        claim, tree = self.claim, opened(given)
        n = batch_size(tree)
        drawn = claim.group.sample(min(self.count, n), self.generator)
        order = torch.randperm(n, generator=self.generator)
        hands = [order[i :: len(drawn)] for i in range(len(drawn))]
        dealt = list(zip(drawn, hands, strict=True))
        moved = [claim.input_action(g, _rows(tree, rows)) for g, rows in dealt]
        batch = closed(tree_map(_joined, *moved), given)
        if kwargs:
            made = self.model(**batch)
        else:
            made = self.model(*batch) if len(args) > 1 else self.model(batch)
        back, inverse, start = [], claim.group.inverse, 0
        for g, rows in dealt:
            mine = _rows(opened(made), torch.arange(start, start + len(rows)))
            back.append(claim.output_action(inverse(g), mine))
            start += len(rows)
        return closed(_rows(tree_map(_joined, *back), torch.cat(hands).argsort()), made)


def _rows(tree: Tree, rows: Tensor) -> Tree:
    return on_tensors(lambda t: t[rows.to(t.device)], tree)


def _joined(*leaves: Any) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]
