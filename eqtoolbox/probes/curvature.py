"""Curvature: the sharpest directions of the loss, and how gradient and update lie in them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from eqtoolbox.linalg import top_eigenpairs
from eqtoolbox.linalg.subspace import energy_share
from eqtoolbox.linalg.vectors import dot, norm
from eqtoolbox.objective import Parameters
from eqtoolbox.probe import Measurement, Probe
from eqtoolbox.probes.engine import Engine
from eqtoolbox.record import Mode, Status
from eqtoolbox.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class Curvature(Probe):
    """Top-k and smallest eigenvalues of the Hessian, with true residuals.

    sharpness: the largest eigenvalue. stability: sharpness * lr / 2 for SGD, sharpness * lr /
    (2 + 2 momentum) with heavy-ball momentum: above 1, gradient descent is unstable along the
    sharpest direction (Cohen et al. 2021, arXiv 2103.00065). gradient_overlap and update_overlap:
    share of their energy |V^T x|^2 / |x|^2 in the span of the k sharpest directions (Gur-Ari et
    al. 2018, arXiv 1812.04754). gradient_rayleigh: g^T H g / g^T g.

    An eigenvalue's `stderr` is its residual |H v - lambda v|; `not_converged` marks one whose
    relative residual is above `tol`.
    """

    name: ClassVar[str] = "curvature"
    headline: ClassVar[str] = "sharpness"
    mode: ClassVar[Mode] = "train"

    k: int = 5  # sharpest directions
    smallest: bool = True  # also the most negative curvature
    tol: float = 1e-2  # residual over the largest |eigenvalue|
    max_matvecs: int = 100
    engine: Engine = field(default_factory=Engine, repr=False)

    def __post_init__(self) -> None:
        if self.k < 1 or self.max_matvecs < 1 or self.tol <= 0:
            raise ValueError(
                f"curvature needs k >= 1, max_matvecs >= 1 and tol > 0, got k={self.k}, "
                f"max_matvecs={self.max_matvecs}, tol={self.tol}"
            )

    def reference(self, snapshot: Snapshot, rng: torch.Generator) -> dict[str, Any]:
        return self.engine.state(snapshot)

    def measure(
        self, snapshot: Snapshot, reference: dict[str, Any], rng: torch.Generator
    ) -> Iterator[Measurement]:
        self.engine.resume(snapshot, reference)
        k = min(self.k, sum(p.numel() for p in snapshot.before.values()))
        operator = self.engine.operator(snapshot)
        yield from self.engine.report()
        found = top_eigenpairs(
            operator,
            k,
            which="both" if self.smallest else "largest",
            tol=self.tol,
            max_matvecs=self.max_matvecs,
            generator=rng,
            confirm=0,
        )
        for i, value in enumerate(found.values.tolist()):
            quantity, target = ("eigenvalue", str(i + 1)) if i < k else ("smallest", "")
            residual, converged = float(found.residuals[i]), bool(found.converged[i])
            yield from self._eigenvalue(quantity, target, value, residual, converged)
        sharpness, residual = float(found.values[0]), float(found.residuals[0])
        status: Status = "ok" if bool(found.converged[0]) else "not_converged"
        yield Measurement(
            "sharpness", sharpness, stderr=residual, status=status, matvecs=found.matvecs
        )
        yield _stability(snapshot, sharpness, residual, status)
        gradient = snapshot.gradient or operator.gradient
        converged = bool(found.converged[:k].all())
        yield from self._overlaps(snapshot, gradient, found.vectors[:k], converged)
        if norm(gradient) > 0:
            product = operator(gradient)
            rayleigh = dot(gradient, product) / dot(gradient, gradient)
            yield Measurement("gradient_rayleigh", rayleigh, matvecs=1)

    def _eigenvalue(
        self, quantity: str, target: str, value: float, residual: float, converged: bool
    ) -> Iterator[Measurement]:
        status: Status = "ok" if converged else "not_converged"
        note = "" if converged else f"residual {residual:.2e} after {self.max_matvecs} products"
        yield Measurement(quantity, value, target, stderr=residual, status=status, note=note)

    def _overlaps(
        self,
        snapshot: Snapshot,
        gradient: Parameters,
        top: list[Parameters],
        converged: bool,
    ) -> Iterator[Measurement]:
        status: Status = "ok" if converged else "not_converged"
        note = f"top {len(top)} directions"
        if norm(gradient) > 0:
            share = energy_share(gradient, top)
            yield Measurement("gradient_overlap", share, status=status, note=note)
        if snapshot.after is not None and norm(snapshot.update) > 0:
            update = {n: u.to(snapshot.before[n]) for n, u in snapshot.update.items()}
            share = energy_share(update, top)
            yield Measurement("update_overlap", share, status=status, note=note)


def _stability(
    snapshot: Snapshot, sharpness: float, residual: float, status: Status
) -> Measurement:
    groups = [g for g in snapshot.groups if g.names]
    settings = {(g.lr, g.momentum, g.nesterov) for g in groups}
    why = ""
    if snapshot.optimizer != "SGD":
        why = f"{snapshot.optimizer} is stable up to a threshold on its preconditioned Hessian"
    elif len(settings) != 1:
        why = "parameter groups differ in learning rate or momentum"
    elif groups[0].nesterov:
        why = "Nesterov momentum has another threshold"
    if why:
        return Measurement("stability", math.nan, status="not_applicable", note=why)
    group = groups[0]
    factor = group.lr / (2 + 2 * group.momentum)
    return Measurement("stability", factor * sharpness, stderr=factor * residual, status=status)
