"""Alignment: a model moved along its own symmetries to where it stands nearest to another."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from eqtoolbox.act.aligned import Aligned, Matched
from eqtoolbox.act.ascent import Ascent
from eqtoolbox.act.composed import shares
from eqtoolbox.act.contenders import By
from eqtoolbox.act.facing import Facing
from eqtoolbox.act.function import distance
from eqtoolbox.act.gauge import applied, balanced, balancing
from eqtoolbox.act.motion import Motion, Path
from eqtoolbox.act.optimizer_state import refuse_other_models
from eqtoolbox.act.path import barrier, samples
from eqtoolbox.act.transaction import carry_out, live
from eqtoolbox.act.twins import check_twins
from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.isolation import evaluation
from eqtoolbox.replay.objective import LossFunction
from eqtoolbox.replay.parts import pieces
from eqtoolbox.replay.tree import check_batch
from eqtoolbox.replay.unwrap import optimizers_in
from eqtoolbox.weights.discovery import default_loss, discover, labelled
from eqtoolbox.weights.families.discrete import Permuting, SignFlip
from eqtoolbox.weights.parameter import ContinuousSymmetry, ParameterSymmetry

SEARCHED = 64  # samples that symmetries are looked for with
KEPT = 1e-8  # relative change of the outputs in float64 that rounding explains
FLOORS = 3.0  # up to which outputs count as the same
FAR = 2.0  # norm^2 over that of the balanced point, beyond which rounding hides symmetries


@checked
def align(
    model: nn.Module,
    reference: nn.Module,
    batch: Any,
    optimizer: Any = None,
    *,
    loss_fn: LossFunction | None = None,
    by: By = "either",
    families: Sequence[str] | None = None,
    data: Any = None,
) -> Aligned:
    """Move `model` to the point of its orbit that is nearest to `reference`; its function stays.

    The group is what `discover` finds in evaluation mode: permutations of units, channels with
    their running statistics, heads, experts and residual streams, signs, scales between layers,
    matrices within heads. Both models are balanced, so that of the continuous part only rotations
    are free; these, orders and signs are matched together (`act.assignment`), and the result is
    taken to the reference's own scales. Statistics, `.grad` and the optimizer's state go along;
    after any failure everything is as it was.

    Nothing says that the line between the two is low: give `data` and look. Alignment is no
    training, and makes no model better.

    Args:
        model: is moved.
        reference: of the same architecture; stays.
        batch: as `discover` takes it; activations are compared on it. Give some hundred samples of
            the training.
        optimizer: of the model, or several.
        loss_fn: (model, batch) -> scalar; None: as `discover`.
        by: what units are compared by; "either": whatever gives the lowest rise of the loss
            half-way on `batch`, to stay included, or weights where the batch has no targets.
        families: of symmetries, such as "permutation"; None: all of them.
        data: a batch or batches for the barrier before and after; None: it is not measured.

    Returns:
        What was matched, distances, the change of the outputs; prints as a table, and says in
        words where nothing was gained.

    Raises:
        ValueError: models that do not fit or share parameters, values that are not finite, families
            that are not there, or a symmetry that does not keep the function.
        TypeError: state of an optimizer of which it is not known how it goes along.

    References:
        Ainsworth, Hayase & Srinivasa 2022 (arXiv 2209.04836).

    Example:
        >>> import copy
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = (torch.randn(64, 4), torch.randint(0, 3, (64,)))
        >>> other = copy.deepcopy(net)
        >>> order = torch.randperm(8)
        >>> with torch.no_grad():
        ...     for p, axis in ((net[0].weight, 0), (net[0].bias, 0), (net[2].weight, 1)):
        ...         _ = p.copy_(p.index_select(axis, order))
        >>> found = align(net, other, data)
        >>> found.after < 1e-6, torch.allclose(net[0].weight, other[0].weight, atol=1e-6)
        (True, True)
    """
    inner, goal = live(model), live(reference)
    _refuse_same(inner, goal)
    check_twins(inner, goal)
    if optimizer is not None:
        refuse_other_models(optimizers_in(optimizer), dict(inner.named_parameters()))
    for one in (inner, goal):
        check_batch(batch, one)
    remarks: tuple[str, ...] = ()
    if by == "either" and loss_fn is None and not labelled(inner, batch):
        by, remarks = "weights", ("no targets to judge by: matched by weights",)
    loss = default_loss if loss_fn is None else loss_fn
    with evaluation(inner), evaluation(goal):
        used = matchable(inner, few(batch), loss)
        if families is not None:
            _refuse_unknown(families, used)
            used = [s for s in used if s.family in families]
        facing = Facing(inner, goal, batch, loss, used)
        with facing.function.objective.isolated():
            way, ascent = facing.best(by)
            motions = facing.motions(ascent)
            kept, there = facing.exactly(motions), facing.live(motions)
            change = distance(there.seen.outputs, facing.function.seen.outputs)
            floor = max(f.floor(len(motions)) for f in (facing.function, there))
    if not kept <= KEPT or not change <= FLOORS * floor:
        raise ValueError(
            f"the outputs would change by {change:.1e} ({kept:.0e} in float64), more than "
            f"{FLOORS:.0f} floors of {floor:.1e}: nothing was changed; give a larger batch, or "
            "models in float64"
        )
    naive = None if data is None else barrier(goal, inner, data, loss_fn=loss_fn)
    before = facing.distance()
    if motions:
        said = f"moved to where it is nearest to a reference, by {way}"
        carry_out(model, Path(motions=motions), optimizer, act="align", said=said)
    return Aligned(
        before=before,
        after=facing.distance(),
        balanced_before=facing.relative(Ascent(facing.goal, facing.start)),
        balanced_after=facing.relative(ascent),
        change=change,
        floor=floor,
        way=way,
        matched=tuple(_matched(used, motions)),
        naive=naive,
        aligned=None if data is None else barrier(goal, inner, data, loss_fn=loss_fn),
        remarks=remarks,
    )


def matchable(model: nn.Module, batch: Any, loss_fn: LossFunction) -> list[ParameterSymmetry]:
    """What keeps the function and can be matched, looked for again where it is balanced."""
    used = [s for s in discover(model, batch, loss_fn) if _used(s)]
    own = {n: p.detach().double() for n, p in model.named_parameters() if p.requires_grad}
    there = applied(balancing([s for s in used if isinstance(s, ContinuousSymmetry)], own), own)
    if sum(float(x.square().sum()) for x in own.values()) > FAR * sum(
        float(x.square().sum()) for x in there.values()
    ):
        return [s for s in discover(model, batch, loss_fn, at=there) if _used(s)]
    return used


def _refuse_unknown(families: Sequence[str], found: Sequence[ParameterSymmetry]) -> None:
    known = {s.family for s in found}
    if unknown := [f for f in families if f not in known]:
        raise ValueError(
            f"expected families among {sorted(known)}, got {', '.join(unknown)}: others keep the "
            "loss and not the function, hold approximately, or are not there"
        )


def few(batch: Any) -> Any:
    """The first samples of a batch, if it can be cut."""
    try:
        return pieces(batch, max(1, -(-samples(batch) // SEARCHED)))[0][0]
    except ValueError:
        return batch


def _used(symmetry: ParameterSymmetry) -> bool:
    """Whether it keeps the function and can be matched."""
    if symmetry.status != "verified":
        return False
    if isinstance(symmetry, ContinuousSymmetry):
        return balanced(symmetry)
    return isinstance(symmetry, (Permuting, SignFlip))


def _matched(used: Sequence[ParameterSymmetry], motions: Sequence[Motion]) -> Iterator[Matched]:
    moved = shares(motions)
    for s in used:
        discrete = not isinstance(s, ContinuousSymmetry)
        size = s.dimension + isinstance(s, Permuting)
        yield Matched(
            family=s.family,
            name=s.name,
            size=size,
            moved=moved.get(id(s), (0, 0))[0] if discrete else None,
            slots=_slots(s),
        )


def _slots(symmetry: ParameterSymmetry) -> int:
    """Axes of parameters that go along."""
    legs: Any = getattr(symmetry, "slots", getattr(symmetry, "legs", None))
    return len(symmetry.names) if legs is None else len({(leg.name, leg.axis) for leg in legs})


def _refuse_same(model: nn.Module, reference: nn.Module) -> None:
    if model is reference:
        raise ValueError("expected another model as reference, got the model itself")
    own = {id(p): n for n, p in model.named_parameters()}
    shared = [own[id(p)] for p in reference.parameters() if id(p) in own]
    if shared:
        raise ValueError(
            f"the reference shares {shared[0]} with the model, which would move it, too: give a "
            "copy, copy.deepcopy(reference)"
        )
