"""Alignment: how gradient, update, momentum and symmetries lie in the sharpest directions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from eqtoolbox.linalg import principal_angles
from eqtoolbox.linalg.basis import Basis
from eqtoolbox.linalg.subspace import share_in
from eqtoolbox.linalg.vectors import dot, norm, zeros_like
from eqtoolbox.probes.operators import DifferentiatedOperator
from eqtoolbox.probes.stability import momentum_buffer
from eqtoolbox.probes.symmetries import FoundSymmetries
from eqtoolbox.record.record import Status
from eqtoolbox.replay.objective import Parameters
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import NotApplicable, Snapshot


def overlaps(
    snapshot: Snapshot,
    gradient: Parameters,
    top: Sequence[Parameters],
    status: Status,
) -> Iterator[Measurement]:
    """Energy shares |V^T x|^2 / |x|^2 in span(V) of gradient, update and momentum.

    A random vector has k / n.
    """
    vectors: list[tuple[str, str, Mapping[str, Tensor] | None]] = [
        ("gradient_overlap", "", gradient),
        ("update_overlap", "", _update(snapshot)),
        ("momentum_overlap", "", momentum_buffer(snapshot)),
    ]
    yield from _shares(top, vectors, status)


def of_symmetries(
    snapshot: Snapshot, top: Sequence[Parameters], rng: torch.Generator, status: Status
) -> Iterator[Measurement]:
    """The same of symmetries, each by a random element of its algebra."""
    tangents = (("symmetry_overlap", *found) for found in _tangents(snapshot, rng))
    yield from _shares(top, tangents, status)


def _shares(
    top: Sequence[Parameters],
    vectors: Iterable[tuple[str, str, Mapping[str, Tensor] | None]],
    status: Status,
) -> Iterator[Measurement]:
    span = Basis.spanning(top)
    for quantity, target, vector in vectors:
        if vector is not None and norm(vector) > 0:
            share, note = share_in(span, vector), f"top {len(top)} directions"
            yield Measurement(quantity, share, target, status=status, note=note)


def along(operator: DifferentiatedOperator, gradient: Parameters) -> Iterator[Measurement]:
    """Curvature x^T H x / x^T x along the gradient."""
    if norm(gradient) > 0:
        rayleigh = dot(gradient, operator(gradient)) / dot(gradient, gradient)
        yield Measurement("gradient_rayleigh", rayleigh, matvecs=1)


def decrease(snapshot: Snapshot, operator: DifferentiatedOperator) -> Iterator[Measurement]:
    """Curvature along the update, and the decrease of the loss that it implies.

    predicted_decrease = -g.d - d^T H d / 2 for the update d; actual_decrease = L(theta_t) -
    L(theta_{t+1}) on the same batch.
    """
    update = _update(snapshot)
    if update is None or norm(update) == 0 or snapshot.after is None:
        return
    bend = dot(update, operator(update))
    yield Measurement("update_rayleigh", bend / dot(update, update), matvecs=1)
    predicted = -dot(operator.gradient, update) - 0.5 * bend
    with torch.no_grad():
        before = float(snapshot.objective(snapshot.before))
        actual = before - float(snapshot.objective(snapshot.after))
    rounding = 4 * torch.finfo(next(iter(update.values())).dtype).eps * abs(before)
    yield Measurement("predicted_decrease", predicted)
    yield Measurement("actual_decrease", actual, floor=rounding)


def turn(
    top: Sequence[Parameters], last: Sequence[Parameters] | None, status: Status
) -> Iterator[Measurement]:
    """Largest principal angle, in degrees, between the top spaces of two measurements."""
    if last and all(v.keys() == top[0].keys() for v in last):
        angle = float(principal_angles(last, top)[-1])
        yield Measurement("turn", angle * 180 / torch.pi, unit="degrees", status=status)


def _update(snapshot: Snapshot) -> Parameters | None:
    if snapshot.after is None:
        return None
    return {n: u.to(snapshot.before[n]) for n, u in snapshot.update.items()}


def _tangents(snapshot: Snapshot, rng: torch.Generator) -> Iterator[tuple[str, Parameters]]:
    if snapshot.world.sharded:  # an element mixes rows of several processes
        return
    try:
        families = FoundSymmetries.of(snapshot).by_family()
    except NotApplicable:
        return
    for family, members in families.items():
        tangent = zeros_like(snapshot.before)
        for member in members:
            draw = torch.randn(member.dimension, generator=rng, dtype=torch.float64)
            coefficients = draw.to(snapshot.before[member.names[0]])
            for name, part in member.tangent(snapshot.before, coefficients).items():
                tangent[name] = tangent[name] + part
        yield family, tangent
