"""Alignment: a model moved along its own symmetries to where it stands nearest to another."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from eqtoolbox.act.aligned import Aligned, Matched
from eqtoolbox.act.ascent import Ascent
from eqtoolbox.act.composed import shares
from eqtoolbox.act.facing import Facing, relative
from eqtoolbox.act.gauge import balanced
from eqtoolbox.act.motion import Motion, Path
from eqtoolbox.act.path import barrier, samples
from eqtoolbox.act.transaction import carry_out, live
from eqtoolbox.act.twins import check_twins
from eqtoolbox.act.ways import By
from eqtoolbox.expect.checked import checked
from eqtoolbox.replay.isolation import evaluation
from eqtoolbox.replay.objective import LossFunction
from eqtoolbox.replay.parts import pieces
from eqtoolbox.replay.tree import check_batch
from eqtoolbox.weights.discovery import default_loss, discover, labelled
from eqtoolbox.weights.families.discrete import Permuting, SignFlip
from eqtoolbox.weights.parameter import ContinuousSymmetry, ParameterSymmetry

SEARCHED = 64  # samples that symmetries are looked for with
KEPT = 1e-8  # relative change of the outputs in float64 that rounding explains
FLOORS = 100.0  # changes of the outputs that are rounding in their own precision


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
        by: what units are compared by; "either": whatever gives the lowest loss half-way on
            `batch`, where it has targets, to stay as it is included; weights where it has none.
        families: of symmetries, such as "permutation"; None: all of them.
        data: a batch or batches for the barrier before and after; None: it is not measured.

    Returns:
        What was matched, distances, the change of the outputs; prints as a table, and says in
        words where nothing was gained.

    Raises:
        ValueError: models that do not fit or share parameters, values that are not finite, or a
            symmetry that does not keep the function.
        TypeError: state of an optimizer of which it is not known how it goes along.

    References:
        Ainsworth, Hayase & Srinivasa 2022 (arXiv 2209.04836).

    Example:
        >>> import copy
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = (torch.randn(64, 4), torch.randint(0, 3, (64,)))
        >>> other = copy.deepcopy(net)
        >>> order = torch.randperm(8)
        >>> with torch.no_grad():
        ...     for p, axis in ((net[0].weight, 0), (net[0].bias, 0), (net[2].weight, 1)):
        ...         p.copy_(p.index_select(axis, order))
        >>> found = align(net, other, data)
        >>> found.after < 1e-6, torch.allclose(net[0].weight, other[0].weight, atol=1e-6)
        (True, True)
    """
    inner, goal = live(model), live(reference)
    _refuse_same(inner, goal)
    check_twins(inner, goal)
    check_batch(batch, inner)
    remarks: tuple[str, ...] = ()
    if by == "either" and loss_fn is None and not labelled(inner, batch):
        by, remarks = "weights", ("no targets to judge by: matched by weights",)
    with evaluation(inner):
        found = discover(inner, few(batch), loss_fn)
    used = [s for s in found if _used(s) and (families is None or s.family in families)]
    facing = Facing(inner, goal, batch, default_loss if loss_fn is None else loss_fn, used)
    way, ascent = facing.best(by)
    motions = facing.motions(ascent)
    naive = None if data is None else barrier(goal, inner, data, loss_fn=loss_fn)
    before, was = facing.distance(), facing.outputs()
    exact = facing.outputs(torch.float64)
    floor, change = max(relative(was, exact), torch.finfo(was.dtype).eps), 0.0

    def check() -> None:
        nonlocal change
        change = relative(facing.outputs(), was)
        if not change <= max(FLOORS * floor, KEPT):
            raise ValueError(
                f"the outputs would change by {change:.1e}, rounding explains {floor:.1e}: the "
                "scales of the two are too far apart for this precision; act.balance them first"
            )

    if motions:
        kept = relative(facing.outputs(torch.float64, motions), exact)
        if not kept <= KEPT:
            raise ValueError(
                f"the outputs would change by {kept:.1e} in float64: a symmetry found on a part of "
                "the batch does not hold on all of it; leave it out by families=..."
            )
        said = f"moved to where it is nearest to a reference, by {way}"
        carry_out(inner, Path(motions=motions), optimizer, act="align", said=said, check=check)
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
