"""A canonical pose x -> R_h^-1 f(S_h x), h the best by a score: exact, one forward, with jumps."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from eqtoolbox.enforce.averaged import Wrapped, acting, uncast, widened
from eqtoolbox.enforce.calling import Calling, Model
from eqtoolbox.enforce.elements import finite
from eqtoolbox.enforce.enforced import Enforced, plain
from eqtoolbox.enforce.score import PoseScore
from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Seed
from eqtoolbox.expect.words import shown
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.claim import Claimed, Equivariance
from eqtoolbox.symmetry.structure import Tree, batch_size, tensors
from eqtoolbox.symmetry.together import concatenated

Scored = Annotated[Callable[[Any], Any], takes(1, "of a batch, or a module")]

_SAME = 100.0  # roundings up to which two poses are one


class Canonicalised(Enforced):
    """See `canonicalised`.

    `.margins` (batch,) has the best score less the second of each sample of the last call.
    """

    method = "canonicalised"

    def __init__(self, model: Model, claim: Equivariance, score: Callable[[Any], Any]) -> None:
        super().__init__(model, claim)
        self.score, self.elements = score, finite(claim.group)
        self.margins: Tensor | None = None

    @property
    def cost(self) -> tuple[int, int]:
        """One forward; a score an element."""
        return 1, len(self.elements)

    @property
    def margin(self) -> float:
        """The smallest margin of the last call; NaN before the first."""
        return math.nan if self.margins is None else float(self.margins.min())

    def answer(self, calling: Calling) -> Tree:
        """The output at the best pose, moved back."""
        poses = [acting(self.claim.input_action, g, calling.tree) for g in self.elements]
        scores = self._scores(poses)
        if plain(calling.tree):
            self.margins = _margins(scores)
        best, drift = scores.argmax(1), None
        if self.training and scores.requires_grad:
            soft = scores.softmax(1)
            drift = soft - soft.detach()
        pose = tree_map(lambda *leaves: _chosen(leaves, best, drift), *poses)
        outputs = calling.respond(pose)
        group, act = self.claim.group, self.claim.output_action
        if act is trivial:
            return outputs
        back = [acting(act, group.inverse(g), widened(outputs)) for g in self.elements]
        same = _same(poses, pose, best)
        return tree_map(lambda y, *leaves: _mixed(y, leaves, same, drift), outputs, *back)

    def margin_on(self, calling: Calling) -> float:
        """The smallest margin on a batch.

        Raises:
            ValueError: scores that are not finite, or equal to rounding for two different poses.
        """
        poses = [self.claim.input_action(g, calling.tree) for g in self.elements]
        scores = self._scores(poses).detach()
        if not bool(torch.isfinite(scores).all()):
            raise ValueError("score must be finite, got NaN or infinity on the sample")
        best = scores.argmax(1)
        chosen = tree_map(lambda *leaves: _chosen(leaves, best, None), *poses)
        bound = _SAME * torch.finfo(scores.dtype).eps * scores.abs().amax(1, keepdim=True)
        tied = (scores >= scores.amax(1, keepdim=True) - bound) & ~_same(poses, chosen, best)
        if bool(tied.any()):
            raise ValueError(
                f"score must tell poses apart, got the same to rounding for different poses of "
                f"{int(tied.any(1).sum())} of {len(tied)} samples; give one that reads the whole "
                "input, or None for one that learns"
            )
        return float(_margins(scores).min())

    def why(self, margin: float) -> str:
        """What a violation comes from."""
        return (
            "the score or the model sees more than one pose at a time, or a random number that "
            f"evaluation mode does not stop; mend that first (smallest margin {margin:.1g})"
        )

    def _scores(self, poses: list[Tree]) -> Tensor:
        """(batch, elements)"""
        try:
            joined = [concatenated(poses)]
        except (RuntimeError, ValueError):  # of shapes that differ
            joined = poses
        with uncast(poses[0]):
            found = [_one_a_sample(self.score(x), x) for x in joined]
        return torch.cat(found).reshape(len(poses), -1).T


def _one_a_sample(scores: Any, poses: Tree) -> Tensor:
    samples = batch_size(poses)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (samples,):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else shown(scores)
        raise ValueError(
            f"score must return one number a sample, shape ({samples},), got {got}; sum over the "
            "rest, as in lambda x: x.flatten(1).sum(1)"
        )
    return scores


def _margins(scores: Tensor) -> Tensor:
    top = scores.detach().topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def _chosen(leaves: tuple[Any, ...], best: Tensor, drift: Tensor | None) -> Any:
    """The leaf of each sample's best pose; its gradient to the scores is that of a soft choice."""
    if not isinstance(leaves[0], Tensor):
        return leaves[0]
    if len(best) == 1:  # poses of one sample may differ in shape
        chosen = leaves[int(best)]
    else:
        chosen = torch.stack(leaves)[best, torch.arange(len(best), device=best.device)]
    if (
        drift is None
        or not chosen.is_floating_point()
        or any(x.shape != chosen.shape for x in leaves)
    ):
        return chosen
    return chosen + _drifted(torch.stack(leaves), drift)


def _mixed(y: Any, leaves: tuple[Any, ...], same: Tensor, drift: Tensor | None) -> Any:
    """The mean of what the elements of one pose move the output to."""
    if not isinstance(y, Tensor):
        return y
    back = torch.stack(leaves)
    shares = _beside(same.double() / same.sum(1, keepdim=True), back)
    mean = torch.where(shares > 0, shares * back, torch.zeros_like(back)).sum(0)
    return (mean if drift is None else mean + _drifted(back, drift)).to(y.dtype)


def _drifted(poses: Tensor, drift: Tensor) -> Tensor:
    """Zero, with the gradient of the soft choice."""
    return (_beside(drift, poses) * poses.nan_to_num(0.0, 0.0, 0.0)).sum(0)


def _beside(weights: Tensor, x: Tensor) -> Tensor:
    """(batch, elements) to multiply (elements, batch, ...) by."""
    return weights.T.reshape(*x.shape[:2], *[1] * (x.dim() - 2)).to(x.dtype)


def _same(poses: list[Tree], pose: Tree, best: Tensor) -> Tensor:
    """(batch, elements): True where an element leads to the chosen pose."""
    same = F.one_hot(best, len(poses)).bool()
    if any([x.shape for x in tensors(p)] != [x.shape for x in tensors(pose)] for p in poses):
        return same
    equal = torch.ones_like(same)
    for leaves in zip(*map(tensors, poses), tensors(pose), strict=True):
        some, chosen = torch.stack(leaves[:-1]).detach(), leaves[-1].detach()
        near = some == chosen
        if chosen.is_floating_point():
            scale = chosen.abs().nan_to_num(0.0, 0.0, 0.0).flatten(1).amax(1)
            bound = (_SAME * torch.finfo(chosen.dtype).eps * scale).reshape(
                -1, *[1] * (chosen.dim() - 1)
            )
            near = near | ((some - chosen).abs() <= bound)
        equal = equal & near.flatten(2).all(2).T
    return same | equal


@checked
def canonicalised(
    model: Wrapped,
    claim: Claimed,
    score: Scored | None = None,
    sample: Any = None,
    *,
    seed: Seed = 0,
) -> Canonicalised:
    """The model asked at one pose of each sample, the best by a score, its output moved back.

        x -> R_h^-1 f(S_h x),   h = argmax_g score(S_g x), for each sample by itself

    As S_h x is the same for all poses of x, the claim is obeyed exactly whatever the model and the
    score are, at one forward of the model, as many samples as the batch has, and |G| scores. It
    is checked as `averaged` is. A function made so jumps where the best score changes hands:
    `.margins` has the best less the second of each sample of the last call, `.margin` the
    smallest, `.report` that of the sample. Rounding alone can turn a margin near zero.

    An input that some elements leave as it is has margin zero. The outputs that these elements
    lead to are averaged, as the claim demands of such an input; just beside it the function jumps,
    unless the model obeys the claim for these elements. Two different poses of equal score, such
    as of a constant score, cannot be told apart: the check refuses them.

    While it trains, gradients reach the score as if the choice were a softmax of the scores
    (straight-through); values are those of the choice. An optimizer made from the parameters of
    the result trains the score; one that was made before has the model's only.

    Args:
        model: a module or any function, called as it wants; left as it is.
        claim: of a finite group, as for `averaged`.
        score: a module or function of what the claim moves, (batch, ...) -> (batch,), higher for
            the pose to take; a batch of parts is one sample. None: a `PoseScore`, which learns.
        sample: one batch to check it on, as for `averaged`. None: the first call is checked.
        seed: of the learned score.

    Raises:
        TypeError, ValueError: as for `averaged`; a score of another shape, or one that does not
            tell poses apart.

    Reference: Kaba et al. 2023, arXiv 2211.06489; for the jumps Dym et al. 2024, arXiv 2402.16077.

    Example:
        >>> from eqtoolbox.symmetry.actions.action import flip
        >>> from eqtoolbox.symmetry.groups.group import Flip
        >>> claim = Equivariance(Flip(), flip, flip)
        >>> left = lambda x: x[..., 0].flatten(1).sum(1)
        >>> summed = canonicalised(lambda x: x.cumsum(-1), claim, left)
        >>> summed(torch.tensor([[[1.0, 3.0]]])), summed(torch.tensor([[[3.0, 1.0]]]))
        (tensor([[[4., 3.]]]), tensor([[[3., 4.]]]))
    """
    made = Canonicalised(model, claim, PoseScore(seed) if score is None else score)
    made.on_sample(sample)
    return made
