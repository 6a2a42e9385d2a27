"""The price of asymmetry in training: of the data, of the gradient, and along the gradient."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from eqtoolbox.expect.bounds import OWN
from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.vectors import dot, norm
from eqtoolbox.probes.claims import (
    Claim,
    Elements,
    OutputAction,
    as_claims,
    claimed,
    name_of,
    require_tensor,
    structured,
    told_unmeasured,
)
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.prediction import Prediction, predicting
from eqtoolbox.probes.view import View
from eqtoolbox.record.record import Mode
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.replay.reading import opened
from eqtoolbox.replay.tree import tensors
from eqtoolbox.symmetry.actions.action import has_edge
from eqtoolbox.symmetry.asymmetry import data_asymmetry
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.orbit import pulled_back
from eqtoolbox.symmetry.structure import Tree, batch_size, like_outputs, on_tensors
from eqtoolbox.watch.probe import Measurement, Probe
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot


@checked
@dataclass(frozen=True, kw_only=True)
class Asymmetry(Probe):
    """Splits the loss over an orbit, E_g l(f_g) = l(E_g f_g) + rest, and follows the second part.

    The second part is what the violation of the symmetry costs: E_g|f_g - E_g f_g|^2 for a squared
    loss, the Jensen gap for other convex ones. With G its gradient, g that of the first part:

    cosine: of G and g; negative where fitting the data breaks the symmetry.
    share: |G| / (|G| + |g|).
    rayleigh, rest_rayleigh: curvature x^T H x / x^T x of the training loss along G and along g.
    data: distance of the batch from its transformed self, see `data_asymmetry`; what percentages
    of the loss mean rests on it.

    The split is taken in evaluation mode, the Hessian is that of the training loss. Claims with
    `Each` average every leaf of the whole output.

    Args:
        symmetries: names of image symmetries, or claims (`Equivariance`).
        output: what named symmetries do to outputs; auto: the same if the output is an image.
        samples: group elements, the identity among them; each keeps a graph.
        engine: how Hessian products are made; see `eqtoolbox.probes.engine.Engine`.

    Reference: the split in arXiv 2512.02303.

    Example:
        >>> Asymmetry(symmetries=["flip"], samples=2).symmetries
        ('flip',)
    """

    name: ClassVar[str] = "asymmetry"
    headline: ClassVar[str] = "cosine"
    mode: ClassVar[Mode] = "eval"
    graphs: ClassVar[float] = 1.0
    copies: ClassVar[float] = 1.0

    symmetries: Annotated[tuple[Claim, ...], OWN] = ("cyclic4", "flip")
    output: OutputAction = "auto"
    samples: Elements = 4
    engine: Engine = field(default_factory=Engine, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "symmetries", as_claims(self.symmetries))

    def measure(
        self, snapshot: Snapshot, reference: None, rng: torch.Generator
    ) -> Iterator[Measurement]:
        params = {n: p.detach().clone().requires_grad_() for n, p in snapshot.before.items()}
        gradients: dict[str, tuple[Parameters, Parameters]] = {}

        def body(f: Prediction) -> list[Measurement]:
            if not any(structured(entry) for entry in self.symmetries):
                require_tensor(f.inputs)
            rows = [list(self._one(f, entry, gradients, rng)) for entry in self.symmetries]
            told = map(told_unmeasured, self.symmetries, rows)
            return [m for own in told for m in own]

        yield from predicting(snapshot.objective, params, body)
        moving = {name: pair for name, pair in gradients.items() if norm(pair[0]) > 0}
        if not moving:
            return
        try:
            hessian = self.engine.operator(snapshot)
        except NotApplicable as reason:
            yield from (_none("rayleigh", name, reason) for name in moving)
            return
        for name, pair in moving.items():
            for quantity, x in zip(("rayleigh", "rest_rayleigh"), pair, strict=True):
                if norm(x) > 0:
                    bend = dot(x, hessian(x)) / dot(x, x)
                    yield Measurement(quantity, bend, name, matvecs=1)

    def _one(
        self,
        f: Prediction,
        entry: Claim,
        gradients: dict[str, tuple[Parameters, Parameters]],
        rng: torch.Generator,
    ) -> Iterator[Measurement]:
        name = name_of(entry)
        try:
            view = View.of(f, entry)
            symmetry = view.claim(claimed(entry, view.inputs, view.outputs, self.output))
        except NotApplicable as reason:
            yield _none("cosine", name, reason)
            return
        try:
            yield _data(view, symmetry, name, rng)
        except (ValueError, TypeError, RuntimeError, LookupError) as reason:
            yield _none("data", name, reason)
        try:
            part, rest = self._split(view, symmetry, rng)
        except (NotApplicable, ValueError, TypeError) as reason:
            yield _none("cosine", name, reason)
            return
        gradients[name] = (part, rest)
        sizes = norm(part), norm(rest)
        if min(sizes) == 0.0:
            yield _none("cosine", name, "one of the two parts has no gradient")
        else:
            yield Measurement("cosine", dot(part, rest) / (sizes[0] * sizes[1]), name)
        if sum(sizes) > 0:
            yield Measurement("share", sizes[0] / sum(sizes), name)

    def _split(
        self, view: View, symmetry: Equivariance, rng: torch.Generator
    ) -> tuple[Parameters, Parameters]:
        """Gradients of E_g l(f_g) - l(E_g f_g) and of l(E_g f_g)."""
        loss, group = view.loss(view.f.loss()), symmetry.group
        if loss is None:
            raise NotApplicable(
                "the loss is no function of the claim's output alone: it has no equivariance part"
            )
        if has_edge(symmetry.output_action):
            raise NotApplicable("outputs with an edge that is not compared have no average")
        if group.order is not None and group.order <= self.samples:
            elements = list(group.elements())
        else:
            drawn = group.sample(2 * self.samples, rng)
            others = [g for g in drawn if g != group.identity]
            elements = [group.identity, *others[: self.samples - 1]]
        with torch.enable_grad():
            pulled = pulled_back(view.function, view.inputs, symmetry, elements)
            rest = loss(on_tensors(lambda y: y.mean(dim=0), pulled))
            each = [on_tensors(itemgetter(i), pulled) for i in range(len(elements))]
            part = torch.stack([loss(y) for y in each]).mean() - rest
        return _gradient(part, view.f.params), _gradient(rest, view.f.params)


def _gradient(value: Tensor, params: Parameters) -> Parameters:
    found = torch.autograd.grad(value, list(params.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(p).detach() if g is None else g.detach()
        for (name, p), g in zip(params.items(), found, strict=True)
    }


def _data(view: View, symmetry: Equivariance, name: str, rng: torch.Generator) -> Measurement:
    targets = _targets(view)
    found = data_asymmetry(view.inputs, targets, symmetry, generator=rng)
    what = "of inputs and targets" if targets is not None else "of inputs alone"
    return Measurement(
        "data",
        found.coefficient,
        name,
        floor=found.floor,
        verdict=found.verdict,
        note=f"{what}, {found.samples} samples, p = {found.p_value:.3g}",
    )


def _targets(view: View) -> Tree | None:
    """What the batch holds beside the arguments: classes, or values like those of the output."""
    f, outputs = view.f, view.outputs
    if view.parts:
        return None
    if not isinstance(outputs, Tensor):
        return like_outputs(opened(f.objective.batch), outputs)
    given = {x.data_ptr() for x in tensors((f.call.args, f.call.kwargs))}
    samples = batch_size(view.inputs)
    rest = [
        x
        for x in tensors(f.objective.batch)
        if x.data_ptr() not in given and x.dim() > 0 and len(x) == samples
    ]
    if not rest:
        return None
    y = rest[-1]
    classes = y.dim() == 1 and not y.is_floating_point()
    return y if classes or y.shape == outputs.shape else None


def _none(quantity: str, name: str, reason: object) -> Measurement:
    return Measurement(quantity, math.nan, name, status="not_applicable", note=str(reason))
