"""The group average x -> mean_g R_g^-1 f(S_g x) of any model: exact, at a forward an element."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from eqtoolbox.enforce.calling import Calling, Model
from eqtoolbox.enforce.elements import Rule, require_mean, rule
from eqtoolbox.enforce.enforced import Enforced
from eqtoolbox.expect.bounds import count, takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count, Natural, Seed
from eqtoolbox.symmetry.actions.action import Action
from eqtoolbox.symmetry.claim import Claimed, Equivariance
from eqtoolbox.symmetry.groups.group import Element
from eqtoolbox.symmetry.structure import Tree, on_tensors, tensors

Wrapped = Annotated[Callable[..., Any], takes(1, "of a batch, or a module", more=True)]
Several = Annotated[int, count(2)]


class Averaged(Enforced):
    """See `averaged` and `sampled`."""

    def __init__(
        self, model: Model, claim: Equivariance, mean: Rule, chunk: int | None, method: str
    ) -> None:
        super().__init__(model, claim)
        self.mean, self.chunk, self.method = mean, chunk, method
        self.exact = method == "averaged"

    @property
    def cost(self) -> tuple[int, int]:
        """One forward an element, no scores."""
        return len(self.mean.elements), 0

    def answer(self, calling: Calling) -> Tree:
        """The mean; that of half precision is taken in float32."""
        weights = self.mean.weights or (1.0,) * len(self.mean.elements)
        total: list[Any] = []
        like: Tree = None
        for weight, (answer, pulled) in zip(weights, self._orbit(calling), strict=True):
            terms = [weight * x if isinstance(x, Tensor) else x for x in tree_leaves(pulled)]
            pairs = zip(total or terms, terms, strict=True)
            total = [a + b if isinstance(b, Tensor) else b for a, b in pairs] if total else terms
            like = answer
        share = 1.0 if self.mean.weights else float(len(self.mean.elements))
        ends = zip(total, tree_leaves(like), strict=True)
        leaves = [(x / share).to(y.dtype) if isinstance(x, Tensor) else x for x, y in ends]
        return tree_unflatten(leaves, tree_structure(like))

    def _orbit(self, calling: Calling) -> Iterator[tuple[Tree, Tree]]:
        """f(S_g x) and R_g^-1 f(S_g x), element by element."""
        claim, elements = self.claim, self.mean.elements
        step = self.chunk or len(elements)
        for some in (elements[i : i + step] for i in range(0, len(elements), step)):
            moved = [acting(claim.input_action, g, calling.tree) for g in some]
            for g, y in zip(some, calling.several(moved), strict=True):
                yield y, acting(claim.output_action, claim.group.inverse(g), widened(y))

    def why(self, margin: float) -> str:
        """What a violation comes from."""
        if self.claim.group.order is not None:
            return super().why(margin)
        return (
            "the model has no such degree; give a larger degree=, a smoother model, a finite "
            "subgroup, or take sampled(model, claim), which is not equivariant and says so"
        )


@checked
def averaged(
    model: Wrapped,
    claim: Claimed,
    sample: Any = None,
    *,
    degree: Natural | None = None,
    chunk: Count | None = None,
) -> Averaged:
    """The model averaged over a group, which obeys the claim exactly whatever the model is.

        x -> mean_g R_g^-1 f(S_g x)        over all elements g of a finite group

    A module that is called, trained, saved and moved like the model, whose live parameters it
    holds. It is checked by `equivariance_error` on the sample, else at its first call with plain
    numbers; `.report` has what was found. Train it: an average of a model that was trained
    without is exact too, and its accuracy is what the untrained poses make of it (.42 of turned
    digits where training averaged reaches .96).

    Cost: |G| forwards a call, made as one batch of |G| times the size, so that the statistics of
    BatchNorm are those of the orbit. In chunks they are each chunk's, and training is then
    equivariant only with the statistics held (`eval`). Dropout draws a mask for each element: exact
    in `eval`, in the mean over masks while it trains. Batches of parts, such as nodes of several
    graphs, and inputs whose shapes change with g are evaluated element by element.

    Compact groups without end have no such sum. Where g -> R_g^-1 f(S_g x) is a polynomial of
    degree L in the entries of the rotation, a quadrature is exact for SO(2), O(2), SO(3), O(3) and
    products with finite groups; a polynomial f of degree d in vectors with an invariant output has
    L = d, with a vector L = d + 1. What fails the check on random elements is refused.

    Args:
        model: a module or any function, called as it wants; left as it is.
        claim: how the group acts. On several arguments it acts as on their tuple or, by an `Each`
            of a dict, on the dict of their names; a dataclass is a dict.
        sample: one batch to check it on, the tuple of arguments or the dict of their names where
            there are several; a few samples suffice. None: the first call is checked.
        degree: L, for compact groups without end only.
        chunk: elements that are evaluated together; all unless given.

    Raises:
        TypeError: outputs that are not floating point, an argument that has no action.
        ValueError: a group that is not compact, has more than 1024 elements or cannot be undone;
            an action that is none on the sample, such as quarter turns of an oblong image; a model
            that answers by more than its inputs.

    Reference: the Reynolds operator; Yarotsky 2018, arXiv 1804.10306; Puny et al. 2021, arXiv
    2110.03336.

    Example:
        >>> from eqtoolbox.symmetry.actions.action import flip, trivial
        >>> from eqtoolbox.symmetry.groups.group import Flip
        >>> mean = averaged(torch.nn.Flatten(), Equivariance(Flip(), flip, trivial))
        >>> mean(torch.tensor([[[1.0, 3.0]]]))
        tensor([[2., 2.]])
        >>> mean
        Averaged(
          flip, 2 forwards a call, relative error 0 (holds)
          (model): Flatten(start_dim=1, end_dim=-1)
        )
    """
    made = Averaged(model, claim, rule(claim.group, degree), chunk, "averaged")
    made.on_sample(sample)
    return made


@checked
def sampled(
    model: Wrapped,
    claim: Claimed,
    sample: Any = None,
    *,
    elements: Several = 16,
    seed: Seed = 0,
    chunk: Count | None = None,
) -> Averaged:
    """The model averaged over a few random elements, always the same: not equivariant.

    The mean over K elements of the Haar measure differs from the one over the group by about
    1 / sqrt(K) of what the model breaks; the relative error that is left, with its standard
    error, is in `.report` and in what the module prints.

    Args:
        model: as for `averaged`.
        claim: as for `averaged`.
        sample: as for `averaged`.
        chunk: as for `averaged`.
        elements: K, forwards a call.
        seed: of the elements.

    Raises:
        TypeError, ValueError: as for `averaged`; a violation is no error here.

    Example:
        >>> from eqtoolbox.symmetry.actions.action import trivial
        >>> from eqtoolbox.symmetry.actions.linear import vectors
        >>> from eqtoolbox.symmetry.groups.matrices import SO2
        >>> claim = Equivariance(SO2(), vectors, trivial)
        >>> x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        >>> sampled(torch.relu, claim, x).report.result.verdict
        'violated'
    """
    require_mean(claim.group)
    drawn = claim.group.sample(elements, torch.Generator().manual_seed(seed))
    made = Averaged(model, claim, Rule(tuple(drawn)), chunk, "sampled")
    made.on_sample(sample)
    return made


def acting(action: Action, g: Element, x: Tree) -> Tree:
    """S_g x in the precision of x, whatever autocast says."""
    with uncast(x):
        return action(g, x)


@contextmanager
def uncast(x: Tree) -> Iterator[None]:
    """Scope without autocast on the devices of x."""
    with ExitStack() as scope:
        for device in {t.device.type for t in tensors(x)}:
            if torch.is_autocast_enabled(device):
                scope.enter_context(torch.autocast(device, enabled=False))
        yield


def widened(tree: Tree) -> Tree:
    """The tree with half precision in float32."""
    half = (torch.float16, torch.bfloat16)
    return on_tensors(lambda x: x.float() if x.dtype in half else x, tree)
