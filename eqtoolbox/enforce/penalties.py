"""The penalty on what a model violates of a claim, added to a loss, and the alarm of a collapse."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from eqtoolbox.enforce.calling import Calling, arguments_of
from eqtoolbox.expect import notebook
from eqtoolbox.expect.bounds import takes
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.fit import fitted
from eqtoolbox.expect.kinds import Count, Natural, Positive, Seed
from eqtoolbox.replay.reading import opened
from eqtoolbox.replay.thread.scope import current
from eqtoolbox.symmetry.actions.action import inside_of, trivial
from eqtoolbox.symmetry.claim import Claimed, Equivariance
from eqtoolbox.symmetry.each import batch_of_one
from eqtoolbox.symmetry.groups.group import Element
from eqtoolbox.symmetry.orbit import require_outputs
from eqtoolbox.symmetry.structure import Tree, floating, on_tensors, tensors
from eqtoolbox.watch.aloud import warn
from eqtoolbox.watch.monitor import Monitor

COLLAPSED = 0.01  # of the variance at the start, from which the outputs are one constant
FALLEN, STILL = 1 / 3, 1e-3  # of the start, if it is also as little beside the outputs' own square
DRAWS = 64  # of an element that is not the identity
Wrapped = Annotated[Callable[..., Any], takes(1, "of a batch, or a module", more=True)]


class Penalty:
    """See `penalty`; what it is called with, it adds up to a loss."""

    def __init__(
        self, claim: Equivariance, weight: float, elements: int, seed: int, monitor: Monitor | None
    ) -> None:
        if claim.input_action is trivial and claim.output_action is trivial:
            raise ValueError(
                f"{claim.name} moves neither inputs nor outputs: every model obeys it; give the "
                "action of the group on the data"
            )
        self.claim, self.weight, self.elements = claim, weight, elements
        self.monitor = monitor
        self.start = math.nan  # variance of the outputs over samples at the first call
        self.variance = math.nan  # and at the last
        self.calls = 0
        self._pending: Tensor | None = None  # variance and mean square of the last call
        self.collapsed_at: int | None = None  # the call at which the alarm was raised
        self._generator = torch.Generator().manual_seed(seed)
        self._checked: set[Any] = set()  # shapes on which the actions were verified

    def __repr__(self) -> str:
        many = "" if self.elements == 1 else "s"
        said = (
            f"Penalty({self.claim.name}, weight {self.weight:g}: {self.elements} forward{many} "
            "and backward a call beside the loss's own"
        )
        share = "" if math.isnan(self.start) else f"; variance {self.share:.2g} of its start"
        alarm = "" if self.collapsed_at is None else f"; collapsed at call {self.collapsed_at}"
        return f"{said}{share}{alarm})"

    _repr_html_ = notebook.text

    @property
    def share(self) -> float:
        """Variance of the outputs over samples now, relative to that at the first call."""
        return self.variance / self.start if self.start > 0 else math.nan

    def __call__(self, model: Wrapped, inputs: Any, outputs: Any = None) -> Tensor:
        """The weighted violation, with gradients.

        Args:
            model: called as `model(inputs)`; a tuple holds several arguments, a dict those of its
                names.
            inputs: one batch.
            outputs: f(x), where the loss has it already; without, one more forward.

        Returns:
            A number, shape ().

        Raises:
            TypeError, ValueError: the claim does not fit these inputs or outputs.
        """
        args, kwargs = arguments_of(model, inputs)
        calling = Calling(model, self.claim, args, kwargs)
        found = self._outputs(calling, outputs)
        self._check(calling, found)
        drawn = [self._drawn() for _ in range(self.elements)]
        terms = [self._violation(calling, g, found) for g in drawn]
        if current() is None:  # training, and no replay of it
            self._watch(found, calling.parts)
        return self.weight * torch.stack(terms).mean()

    def _outputs(self, calling: Calling, outputs: Any) -> Tree:
        if outputs is None:
            return calling.respond(calling.tree)
        given = opened(outputs)
        if not floating(given):
            raise TypeError(f"outputs must be those of the model, got {type(outputs).__name__}")
        found = batch_of_one(given) if calling.parts else given
        return require_outputs(found, calling.tree)

    def _violation(self, calling: Calling, g: Element, outputs: Tree) -> Tensor:
        """|f(S_g x) - R_g f(x)|^2 / |R_g f(x)|^2, in the mean over the tensors of an output."""
        moved = calling.respond(self.claim.input_action(g, calling.tree))
        act = self.claim.output_action
        pairs = zip(
            floating(inside_of(act, moved)), floating(inside_of(act, act(g, outputs))), strict=True
        )
        terms = []
        for left, right in pairs:
            size = right.detach().square().sum()
            terms.append((left - right).square().sum() / torch.where(size > 0, size, 1.0))
        return torch.stack([term.to(terms[0]) for term in terms]).mean()

    def _drawn(self) -> Element:
        """A uniform element that moves something."""
        group = self.claim.group
        for _ in range(DRAWS):
            (g,) = group.sample(1, self._generator)
            if g != group.identity:
                break
        return g

    def _check(self, calling: Calling, outputs: Tree) -> None:
        """Verify the actions where these shapes are new."""
        shapes = tuple(tuple(x.shape) for x in (*tensors(calling.tree), *tensors(outputs)))
        kinds = frozenset(shape[1 + calling.parts :] for shape in shapes)
        if kinds in self._checked or current() is not None:
            return
        claim = replace(self.claim, rows="samples")
        with torch.no_grad():
            claim.check(calling.tree, outputs)
            still = [on_tensors(lambda t: t.detach(), x) for x in (calling.tree, outputs)]
            own = torch.Generator().manual_seed(0)
            for g in (g for g in claim.group.sample(DRAWS, own) if g != claim.group.identity):
                if _moves(claim.input_action, g, still[0]) or _moves(
                    claim.output_action, g, still[1]
                ):
                    break
            else:
                raise ValueError(
                    f"{claim.name} moves nothing of this batch: every model obeys it; give the "
                    "action of the group on the data, and inputs with content"
                )
        self._checked.add(kinds)

    @torch.no_grad()
    def _watch(self, outputs: Tree, parts: bool) -> None:
        """Whether outputs still tell samples apart."""
        rows = on_tensors(lambda x: x[0], outputs) if parts else outputs
        known = [x for x in floating(rows) if x.dim() > 0 and len(x) > 1]
        if not known:
            return
        wide = [x.float() for x in known]
        pairs = [torch.stack([x.var(dim=0).mean(), x.square().mean()]) for x in wide]
        self._settle()
        self._pending = torch.stack([pair.to(pairs[0].device) for pair in pairs]).mean(0)
        if self._pending.device.type == "cpu":  # elsewhere at the next call, without waiting
            self._settle()

    def _settle(self) -> None:
        """Read what the last call gave, and raise the alarm if it is due."""
        if self._pending is None:
            return
        (self.variance, energy), self._pending = self._pending.tolist(), None
        if math.isnan(self.start):
            self.start = self.variance
        still = self.variance < STILL * energy and self.variance < FALLEN * self.start
        if self.collapsed_at is None and (still or self.variance < COLLAPSED * self.start):
            self.collapsed_at = self.calls
            warn(
                "penalty",
                f"the outputs collapse: over samples they vary by {self.share:.1g} of what they "
                f"did at the start, and by {self.variance / max(energy, 1e-300):.1g} of their own "
                f"square, at call {self.calls} of the penalty of {self.claim.name}; a constant "
                f"obeys every claim. Lower its weight ({self.weight:g}), or enforce the claim by "
                "eqtoolbox.enforce.averaged or canonicalised",
                self.monitor,
            )
        self.calls += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the stream of elements, and the variance at the start."""
        self._settle()
        return {
            "start": self.start,
            "calls": self.calls,
            "collapsed_at": self.collapsed_at,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            KeyError, TypeError, ValueError: it is no such state; nothing of it is taken.
        """
        fitted("state", state, Mapping[str, Any])
        start = fitted("state['start']", state["start"], float)
        at = fitted("state['collapsed_at']", state["collapsed_at"], Natural | None)
        calls = fitted("state['calls']", state["calls"], Natural)
        stream = fitted("state['generator']", state["generator"], Tensor)
        self._generator.set_state(stream.cpu())
        self._pending = None
        self.start, self.calls, self.collapsed_at = start, calls, at


def _moves(action: Any, g: Element, x: Tree) -> bool:
    pairs = zip(tensors(x), tensors(action(g, x)), strict=True)
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)


@checked
def penalty(
    claim: Claimed,
    weight: Positive,
    *,
    elements: Count = 1,
    seed: Seed = 0,
    monitor: Monitor | None = None,
) -> Penalty:
    """What a model violates of a claim, to be added to its loss. For regression only.

        weight * mean_g |f(S_g x) - R_g f(x)|^2 / |R_g f(x)|^2        g != e, drawn at each call

    The norm below is held (detached), so that small outputs are no way out; constant ones are, and
    in classification a large weight ends there: digits upright and turned are .97/.63 right at
    weight 0.1, .95/.74 at 1 and .09/.09 at 10. In regression it trains (`benchmarks/penalty.py`).
    So the variance of the outputs over samples is watched, and one warning raised when it falls
    below 1 % of what it was at the first call, or below a third of it and 0.1 % of the outputs'
    mean square, which a collapse to a large constant reaches first; `collapsed_at` has the call.
    `averaged` and `canonicalised` obey the claim exactly instead.

    Cost: a forward and a backward an element, and one forward more where `outputs` is not given.
    The model runs as it trains: BatchNorm counts the moved batch, too, and dropout draws anew.

    Args:
        claim: any, with outputs of one tensor or several, which count alike; of a group without
            end elements are drawn from its uniform measure, or the part that it draws from.
        weight: relative to the loss.
        elements: of the group, at each call.
        seed: of the elements; no global stream is drawn from.
        monitor: whose run is told of a collapse.

    Returns:
        A function (model, inputs, outputs=None) -> tensor, with `state_dict`.

    Raises:
        ValueError: the actions move nothing, or (at a call) are none of this group.

    Reference: Elhag et al. 2024 (REMUL), arXiv 2410.17878.

    Example:
        >>> from eqtoolbox.symmetry import Equivariance
        >>> from eqtoolbox.symmetry.actions.action import flip
        >>> from eqtoolbox.symmetry.groups import Flip
        >>> mirror = penalty(Equivariance(Flip(), flip, flip), weight=0.1)
        >>> x = torch.tensor([[[1.0, 3.0]], [[0.0, 2.0]]])
        >>> mirror(torch.abs, x).item(), round(mirror(lambda x: x.cumsum(-1), x).item(), 3)
        (0.0, 0.067)
    """
    return Penalty(claim, weight, elements, seed, monitor)
