"""Tied weights: a module tree that obeys a finite group exactly, at the cost of a plain one."""

from collections.abc import Collection
from copy import deepcopy
from math import sqrt
from typing import Annotated, Any

from torch import nn

from eqtoolbox.enforce.enforced import Enforcement
from eqtoolbox.enforce.subgroup import Subgroup, elements_in
from eqtoolbox.enforce.tie_check import demand, planned
from eqtoolbox.enforce.tying import Ties, apply, owned, plain, relax
from eqtoolbox.expect.bounds import instance
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.notebook import text
from eqtoolbox.replay.streams import RandomState, random_streams
from eqtoolbox.symmetry.claim import Claimed, Equivariance
from eqtoolbox.symmetry.groups.group import Element, Group
from eqtoolbox.symmetry.structure import Tree

Model = Annotated[nn.Module, instance("an nn.Module")]


class Tied(nn.Module):
    """A model whose weights are averages over a group; printed, the table of its layers.

    Called as the model itself. Made by `tied`.
    """

    def __init__(
        self, model: nn.Module, claim: Equivariance, plan: Ties, report: Enforcement
    ) -> None:
        super().__init__()
        self.model, self.claim, self.plan, self.report = model, claim, plan, report
        self.elements: tuple[Element, ...] = tuple(claim.group.elements())
        self._order = {n: list(m._parameters) for n, m in model.named_modules()}
        apply(model, plan, range(len(self.elements)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answer."""
        return self.model(*args, **kwargs)

    def export(self) -> nn.Module:
        """A plain model of the same classes and `state_dict` keys as the one that was tied.

        Its weights are what the averages are now: it obeys the claim in eval mode, at one plain
        forward, and is free to leave it when it is trained on.
        """
        return plain(self.model, self.plan, self._order)

    def relax(self, subgroup: Group | Collection[Any]) -> "Tied":
        """Average over a subgroup from now on: the same function now, more freedom afterwards.

        Weights move to what they average to, in place, so an optimizer goes on; its moments are
        those of the tied directions and the new ones start at zero.

        Args:
            subgroup: some elements of the group in force, closed under composition, or a group
                that lies in it in one way: Cyclic(2) in Cyclic(4), Flip in Dihedral(4). The
                identity alone leaves all weights free.

        Raises:
            ValueError: the elements are no subgroup of the one in force.
        """
        kept = elements_in(self.claim.group, self.elements, subgroup)
        numbers = {g: i for i, g in enumerate(self.claim.group.elements())}
        relax(self.model, self.plan, [numbers[g] for g in kept])
        self.elements = tuple(kept)
        return self

    @property
    def obeyed(self) -> Equivariance | None:
        """The claim that holds now: the one given, or that of the subgroup; None for no group."""
        if len(self.elements) == self.claim.group.order:
            return self.claim
        if len(self.elements) == 1:
            return None
        group = Subgroup(self.claim.group, self.elements)
        return Equivariance(
            group, self.claim.input_action, self.claim.output_action, rows=self.claim.rows
        )

    @property
    def weights(self) -> tuple[int, int]:
        """Weights of the model, and how many of them are free."""
        numbers = {g: i for i, g in enumerate(self.claim.group.elements())}
        kept = [numbers[g] for g in self.elements]
        total = sum(p.numel() for p in self.model.parameters())
        tied = sum(owned(self.model, w).numel() for w in self.plan.laws)
        return total, total - tied + sum(law.free(kept) for law in self.plan.laws.values())

    @property
    def widen(self) -> float:
        """The factor of all hidden widths by which as many weights are free as a plain model has.

        Weights between two hidden layers grow by its square, others by the factor itself.
        """
        counts = [0, 0, 0]
        for where, law in self.plan.laws.items():
            counts[min(self.plan.spread[where], 2)] += law.free(range(len(law.parts[0].source)))
        constant, slope, square = counts
        missing = sum(owned(self.model, w).numel() for w in self.plan.laws) - constant
        if square:
            return (sqrt(slope**2 + 4 * square * missing) - slope) / (2 * square)
        return missing / slope if slope else 1.0

    def __repr__(self) -> str:
        """The table."""
        head = ("layer", "kind", "inputs", "outputs", "weights", "free")
        rows = [head] + [
            (r.layer, r.kind, r.given, r.made, f"{r.before}", f"{r.after}") for r in self.plan.lines
        ]
        wide = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, wide, strict=True)).rstrip() for r in rows]
        total, free = self.weights
        averaged = sum(owned(self.model, w).numel() for w in self.plan.laws)
        after = self.report.result
        group = f"{len(self.elements)} elements of {self.claim.group.name}"
        return "\n".join(
            [
                f"tied to {self.claim.name}: {group}, error {after.relative_error:.1e} "
                f"(before {self.report.before.relative_error:.1e}, floor {after.floor:.1e}, "
                "float64)",
                *lines,
                f"{free} of {total} weights free; hidden widths x {self.widen:.2f} for as many as "
                "a plain model has",
                f"cost: 1 forward, and {averaged} weights averaged a call; exported 1 forward",
            ]
        )

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return text(self)


@checked
def tied(model: Model, claim: Claimed, sample: Tree, *, copy: bool = True) -> Tied:
    """A model whose weights are tied so that f(S_g x) = R_g f(x) for all g, whatever they become.

    Hidden units carry copies of the regular representation where the group moves them, else the
    trivial one, and each weight is an average over the group, given the norm that averaging takes
    from it (about |G|^-1/2; without, accuracy falls to chance) and the pace of a weight that is
    used as often (`Average`): at the same learning rate steps are larger, under Adam by about
    |G|^1/2, so divide it by as much where a training becomes unstable. Batch norms share the
    statistics of a field. Dropout stays as it is: a law in distribution in training, exact in eval
    mode. The model is followed as it runs, whatever its forward is; what no rule knows is refused
    by name, and the result is judged on random weights in float64.

    At the same widths there are about |G| times fewer free weights: compare at equal ones
    (`Tied.widen`). Tie before training: the average of trained weights is a poor start.

    Args:
        model: of Linear, convolutions, pools, norms and pointwise functions, in any wiring.
        claim: of a finite group whose actions are linear; structured batches by `Each`.
        sample: inputs, (batch, ...) or a tree; a tuple holds several arguments.
        copy: tie a copy; False ties the model itself, and optimizers of it go on.

    Raises:
        ValueError: what cannot be tied, where in the model, and why; the model is as it was.
        TypeError: half or quantised weights.

    Reference: Cohen & Welling 2016, arXiv 1602.07576; the average is Ravanbakhsh et al. 2017,
    arXiv 1702.08389, of an existing network.

    Example:
        >>> import torch
        >>> from eqtoolbox.symmetry.actions.action import quarter_turn, trivial
        >>> from eqtoolbox.symmetry.equivariance import equivariance_error
        >>> from eqtoolbox.symmetry.groups.group import Cyclic
        >>> turn = Equivariance(Cyclic(4), quarter_turn, trivial)
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
        >>> made = tied(net, turn, x)
        >>> equivariance_error(made, x, turn).verdict, made.weights
        ('holds', (98, 26))
    """
    demand(model, claim)
    with random_streams(RandomState.seeded(0)):
        owed, report = planned(deepcopy(model).cpu().double().eval(), claim, sample)
    return Tied(deepcopy(model) if copy else model, claim, owed, report)
