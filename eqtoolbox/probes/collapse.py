"""Collapse: whether training near a fixed point of a reflection falls into it or leaves it."""

import math
from collections.abc import Iterator

import torch

from eqtoolbox.linalg import FunctionOperator, top_eigenpairs
from eqtoolbox.linalg.vectors import Vector, norm, random_like
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.operators import DifferentiatedOperator
from eqtoolbox.probes.pull import MEMORY, Pull
from eqtoolbox.record.record import Status, verdict
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.weights.orbit.approach import Approach
from eqtoolbox.weights.orbit.reflection import Reflection

AMPLIFIED = 0.1  # relative error of a product that a metric of many orders makes of rounding
TOL = 1e-3  # residual of the smallest eigenvalue over the largest |eigenvalue| of its block


def collapse(
    snapshot: Snapshot,
    engine: Engine,
    approach: Approach,
    target: str,
    floor: float | None,
    max_matvecs: int,
    rng: torch.Generator,
) -> Iterator[Measurement]:
    """Distance, rate, block structure and margin of one reflection, see `Discrete`.

    Args:
        snapshot: of the step.
        engine: for the Hessian at the symmetric point.
        approach: the reflection, near one of its fixed points.
        target: last word of the records' names.
        floor: relative noise of a Hessian product; None to leave the block structure out.
        max_matvecs: budget of the eigenvalue.
        rng: of random directions.
    """
    reflection = approach.reflection
    label = reflection.label
    facts = {"which": label, "pair": approach.pair}
    yield Measurement("nearest", approach.distance, target, note=label, facts=facts)
    z = reflection.coordinates(snapshot.before)
    if snapshot.after is not None and norm(z) > 0:
        left = norm(reflection.coordinates(snapshot.after)) / norm(z)
        yield Measurement("shrinking", 1 - left, target, unit="1/step", note=label)
    there = snapshot.at(reflection.symmetric(snapshot.before), reflection.symmetric)
    operator = engine.operator(there)
    if floor is not None:
        yield _block(operator, reflection, target, floor, rng)
    yield from _margin(there, operator, reflection, target, max_matvecs, rng)


def _block(
    operator: DifferentiatedOperator,
    reflection: Reflection,
    target: str,
    floor: float,
    rng: torch.Generator,
) -> Measurement:
    """|P H v| / (|H v| + |H| |v|) for an antisymmetric v: H T = T H sends it to 0."""
    like = operator.gradient
    v = reflection.embed(random_like(reflection.coordinates(like), rng), like)
    product = operator(v)
    typical = norm(operator(operator.gradient)) / max(norm(operator.gradient), 1e-300)
    out = norm(reflection.symmetric(product))
    value = out / max(norm(product) + typical * norm(v), 1e-300)
    return Measurement(
        "block",
        value,
        target,
        floor=floor,
        verdict=verdict(value, floor),
        matvecs=2,
        note=reflection.label,
    )


def _margin(
    snapshot: Snapshot,
    operator: DifferentiatedOperator,
    reflection: Reflection,
    target: str,
    max_matvecs: int,
    rng: torch.Generator,
) -> Iterator[Measurement]:
    """Smallest eigenvalue of what pulls deviations back, see `Pull`."""
    label = reflection.label
    pull, why = Pull.of(snapshot, reflection)

    def product(v: Vector) -> Vector:
        inner = {n: x * pull.root[n] for n, x in v.items()}
        bent = reflection.coordinates(operator(reflection.embed(inner, snapshot.before)))
        return {n: pull.root[n] * bent[n] + pull.decay[n] * v[n] for n in v}

    adaptive = snapshot.optimizer in MEMORY
    block = FunctionOperator(
        product,
        reflection.coordinates(snapshot.before),
        accuracy=AMPLIFIED if adaptive else operator.accuracy,
    )
    found = top_eigenpairs(
        block, 1, which="smallest", tol=TOL, max_matvecs=max_matvecs, generator=rng
    )
    value, error = float(found.values[0]), float(found.residuals[0])
    converged = bool(found.converged[0]) or abs(value) > 2 * error
    status: Status = "ok" if converged else "not_converged"
    along = found.vectors[0]
    pulled = sum(float((pull.decay[n] * x.double().square()).sum()) for n, x in along.items())
    note = f"{label}; in the metric of {snapshot.optimizer}" if adaptive else label
    why = why or pull.too_slow(snapshot, value)
    if why:
        yield Measurement(
            "margin", math.nan, target, status="not_applicable", note=f"{label}: {why}"
        )
    else:
        yield Measurement(
            "margin", value, target, stderr=error, status=status, matvecs=found.matvecs, note=note
        )
    yield Measurement(
        "normal_curvature",
        value - pulled,
        target,
        stderr=error,
        status=status,
        note=note if why else f"{note}; merge above {-pulled:.3g}",
        facts={"metric": snapshot.optimizer} if adaptive else {},
    )
