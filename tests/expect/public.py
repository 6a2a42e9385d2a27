"""Every public call with arguments that it takes, for tests that spoil one of them at a time."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox import act, choose, enforce, linalg, symmetry, weights
from eqtoolbox.attach.config import PROBES
from eqtoolbox.integrations.attachment import Attachment
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry import actions, audit, testing
from eqtoolbox.symmetry.actions import alike, linear, resampling
from tests.laws.members import MEMBERS, point

Good = dict[str, Any]

X = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
ROWS = X.flatten(1)[:, :3].clone()
NET = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
LINE = nn.Linear(3, 2)
with torch.random.fork_rng():
    torch.manual_seed(0)  # of others a unit may be dead
    DEEP = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
TURNS = symmetry.Equivariance(symmetry.Cyclic(4), actions.quarter_turn, actions.trivial)
ROTATIONS = symmetry.Equivariance(symmetry.SO3(), linear.vectors, actions.trivial)
MATRIX = linalg.MatrixOperator(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5])))
VECTOR = {"x": torch.ones(4)}
POINT = {"w": torch.tensor([1.0, 2.0])}


def quartic(params: dict[str, Tensor]) -> Tensor:
    return (params["w"] ** 4).sum()


def square(outputs: Tensor) -> Tensor:
    return outputs.square().mean()


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    return square(model(batch))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@contextmanager
def attached(**options: Any) -> Iterator[eq.Monitor]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = eq.attach(model, optimizer, **options)
    try:
        yield monitor
    finally:
        monitor.close()


def attach(**options: Any) -> None:
    with attached(**options):
        pass


def anchored(optimizer: Any, **options: Any) -> None:
    """An anchor on an optimizer of its own, unless another thing is given."""
    own = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1, weight_decay=0.1)
    act.anchor(own if optimizer is None else optimizer, **options).remove()


def guarded(monitor: Any, **options: Any) -> None:
    """A guard on a monitor of its own, unless another thing is given."""
    with attached(probes=[PROBES["tracking"]()]) as own:
        act.guard(own if monitor is None else monitor, **options)


def method(name: str, **options: Any) -> Callable[..., Any]:
    """A method of a fresh monitor, as a function."""

    def call(**arguments: Any) -> Any:
        with attached(**options) as monitor:
            return getattr(monitor, name)(**arguments)

    return call


def state() -> dict[str, Any]:
    with attached() as monitor:
        return monitor.state_dict()


OPTIONS: Good = {
    "loss_fn": loss_fn, "criterion": None, "probes": "light", "schedule": 5, "budget": 0.05,
    "run_dir": None, "sinks": (), "seed": 0, "on_error": "warn", "resume": False,
}  # fmt: skip
SPECTRUM: Good = {"operator": MATRIX, "generator": rng()}
CLAIM: Good = {"inputs": X, "symmetry": TURNS}
BUILT: Good = {"claim": TURNS, "sample": X}

CALLS: dict[str, tuple[Callable[..., Any], Good]] = {
    "attach": (attach, OPTIONS),
    "Attachment": (Attachment, OPTIONS),
    "monitor.observe": (method("observe", loss_fn=loss_fn), {"batch": ROWS, "weight": 1.0}),
    "monitor.loss": (method("loss"), {"function": loss_fn}),
    "monitor.begin": (method("begin"), {"loss_fn": loss_fn, "batch": ROWS}),
    "monitor.end": (method("end"), {"loss": torch.tensor(1.0)}),
    "monitor.count_from": (method("count_from"), {"step": 3}),
    "monitor.add_sink": (method("add_sink"), {"sink": MemorySink()}),
    "monitor.load_state_dict": (method("load_state_dict"), {"state": state()}),
    "monitor.autocast_inside": (
        method("autocast_inside"), {"device": "cpu", "dtype": torch.bfloat16},
    ),
    "every": (eq.every, {"n": 3, "offset": 1}),
    "at": (eq.at, {"steps": [0, 5]}),
    "log_spaced": (eq.log_spaced, {"n": 10, "until": 100}),
    "Scheduled": (eq.Scheduled, {"probe": PROBES["curvature"](), "schedule": eq.every(1)}),
    "Measurement": (
        eq.Measurement,
        {
            "quantity": "a", "value": 1.0, "target": "", "stderr": 0.1, "floor": 0.1, "unit": "1",
            "status": "ok", "verdict": "holds", "matvecs": 3, "note": "",
        },
    ),
    "hessian": (
        linalg.hessian,
        {"loss": quartic, "params": POINT, "weights": [1], "retain": True, "accuracy": 0.1},
    ),
    "finite_difference": (
        linalg.finite_difference,
        {"loss_or_gradient": quartic, "params": POINT, "scheme": "central", "rho": 0.01},
    ),
    "gauss_newton": (
        linalg.gauss_newton,
        {"model_function": lambda p: p["w"] * 2, "output_loss": square, "params": POINT},
    ),
    "top_eigenpairs": (
        linalg.top_eigenpairs,
        {
            "operator": MATRIX, "k": 1, "which": "both", "k_smallest": 1, "tol": 0.01,
            "max_matvecs": 50, "generator": rng(), "start": VECTOR, "max_vectors": 4, "confirm": 2,
        },
    ),
    "spectral_density": (linalg.spectral_density, {**SPECTRUM, "probes": 2, "steps": 3}),
    "spectral_moments": (linalg.spectral_moments, {**SPECTRUM, "matvecs": 12}),
    "trace": (linalg.trace, {**SPECTRUM, "matvecs": 12}),
    "preconditioned": (
        linalg.preconditioned, {"operator": MATRIX, "diagonal": VECTOR, "accuracy": 0.1},
    ),
    "energy_share": (linalg.energy_share, {"vector": VECTOR, "directions": [VECTOR]}),
    "principal_angles": (linalg.principal_angles, {"first": [VECTOR], "second": [VECTOR]}),
    "MatrixOperator": (linalg.MatrixOperator, {"matrix": torch.eye(2)}),
    "FunctionOperator": (
        linalg.FunctionOperator, {"function": lambda v: v, "example": VECTOR, "accuracy": 0.1},
    ),
    "Tracker": (
        linalg.Tracker,
        {
            "k": 1, "rtol": 0.01, "min_matvecs": 2, "max_matvecs": 8, "deep_every": 20,
            "deep_matvecs": 12, "seed": 0,
        },
    ),
    "Cyclic": (symmetry.Cyclic, {"n": 4}),
    "Dihedral": (symmetry.Dihedral, {"n": 4}),
    "CyclicTranslation": (symmetry.CyclicTranslation, {"size": 4}),
    "Symmetric": (symmetry.Symmetric, {"n": 3}),
    "Octahedral": (symmetry.groups.Octahedral, {"spacing": (1.0, 1.0, 1.0), "proper": True}),
    "Semidirect": (
        symmetry.groups.Semidirect,
        {"normal": symmetry.Cyclic(4), "acting": symmetry.Sign(), "moved": lambda h, n: n},
    ),
    "Orthogonal": (symmetry.groups.Orthogonal, {"n": 3, "proper": True}),
    "Euclidean": (symmetry.groups.Euclidean, {"n": 3, "proper": True, "spread": 1.0}),
    "Lorentz": (symmetry.groups.Lorentz, {"rapidity": 1.0, "space": 3}),
    "SE3": (symmetry.SE3, {"spread": 1.0}),
    "E3": (symmetry.E3, {"spread": 1.0}),
    "Translations": (symmetry.Translations, {"reach": (2,), "whole": True}),
    "Scalings": (symmetry.groups.Scalings, {"octaves": 3, "whole": True}),
    "Strengths": (symmetry.groups.Strengths, {"n": 1}),
    "Alike": (alike.Alike, {"labels": (1, 1)}),
    "Kept": (alike.Kept, {"action": actions.trivial}),
    "Each": (symmetry.Each, {"parts": {"a": actions.trivial}}),
    "Rebuilt": (symmetry.Rebuilt, {"action": actions.trivial, "build": dict}),
    "factor": (symmetry.each.factor, {"index": 0, "action": actions.flip}),
    "one_sample": (symmetry.each.one_sample, {"function": LINE}),
    "Equivariance": (
        symmetry.Equivariance,
        {
            "group": symmetry.Cyclic(4), "input_action": actions.quarter_turn,
            "output_action": actions.trivial, "name": "a", "tolerance": 0.1,
        },
    ),
    "check_action": (
        symmetry.check_action,
        {
            "group": symmetry.Cyclic(4), "action": actions.quarter_turn, "x": X, "name": "a",
            "tolerance": 0.1,
        },
    ),
    "equivariance_error": (
        symmetry.equivariance_error,
        {"function": NET, **CLAIM, "samples": 4, "generator": rng(), "loss": square, "check": True},
    ),
    "culprit": (symmetry.culprit, {"model": NET, **CLAIM, "hidden": {}}),
    "lie_derivative": (
        symmetry.lie_derivative,
        {"function": LINE, "inputs": ROWS, "symmetry": ROTATIONS, "generator": rng()},
    ),
    "layer_shares": (
        symmetry.layer_shares,
        {"model": LINE, "inputs": ROWS, "symmetry": ROTATIONS, "generator": 0, "hidden": {}},
    ),
    "pulled_back": (symmetry.pulled_back, {"function": NET, **CLAIM, "elements": [0, 1]}),
    "percent_of_loss": (
        symmetry.percent_of_loss, {"pulled": torch.ones(2, 4, 3), "loss": square},
    ),
    "data_asymmetry": (
        symmetry.data_asymmetry, {**CLAIM, "targets": None, "generator": rng()},
    ),
    "Charges": (
        weights.Charges, {"members": [MEMBERS["rescale"]], "params": point(0), "sketch": False},
    ),
    "discover": (weights.discover, {"model": LINE, "batch": ROWS, "loss_fn": loss_fn}),
    "discover_data": (
        symmetry.discover_data,
        {"function": LINE, "inputs": ROWS, "equivariant": False, "generator": rng()},
    ),
    "assert_equivariant": (
        testing.assert_equivariant,
        {
            "function": lambda x: x.abs().sum((1, 2, 3))[:, None], **CLAIM, "samples": 4,
            "tolerance": 0.1, "seed": 0,
        },
    ),
    "shadow": (testing.shadow, {"module": NET, **CLAIM, "samples": 4, "seed": 0}),
    "audit": (
        audit.audit, {"model": NET, "inputs": X, "samples": 2, "claims": [TURNS]},
    ),
    "Linear": (linear.Linear, {"rho": lambda m: m, "size": 3}),
    "irrep": (linear.irrep, {"degree": 2, "parity": 1}),
    "Powers": (linear.Powers, {"matrix": torch.tensor([[0.0, -1.0], [1.0, 0.0]])}),
    "Shift": (resampling.Shift, {"reach": (1, 1), "margin": 0}),
    "FourierShift": (resampling.FourierShift, {"dims": (-1,)}),
    "Turn": (resampling.Turn, {"mode": "bicubic", "radius": 0.8, "tolerance": 0.2}),
    "Zoom": (resampling.Zoom, {"mode": "bicubic", "radius": 0.3, "tolerance": 0.2}),
    "averaged": (enforce.averaged, {"model": NET, **BUILT, "chunk": 2}),
    "sampled": (enforce.sampled, {"model": NET, **BUILT, "elements": 2, "seed": 0, "chunk": 2}),
    "canonicalised": (enforce.canonicalised, {"model": NET, **BUILT, "seed": 0}),
    "tied": (enforce.tied, {"model": NET, **BUILT, "copy": True}),
    "penalty": (enforce.penalty, {"claim": TURNS, "weight": 1.0, "elements": 1, "seed": 0}),
    "balance": (
        act.balance,
        {
            "model": DEEP, "batch": ROWS, "optimizer": None, "loss_fn": loss_fn,
            "keep": "function", "families": ["rescale"], "approximate": False, "curvature": False,
        },
    ),
    "move": (
        lambda **given: act.move(**{"symmetry": weights.discover(DEEP, ROWS)[0], **given}),
        {
            "model": DEEP, "symmetry": weights.discover(DEEP, ROWS)[0],
            "coefficients": [0.1] * 4, "optimizer": None, "approximate": False,
            "equivariant": False,
        },
    ),
    "align": (
        act.align,
        {
            "model": DEEP, "reference": copy.deepcopy(DEEP), "batch": ROWS, "optimizer": None,
            "loss_fn": loss_fn, "by": "weights",
        },
    ),
    "barrier": (
        act.barrier,
        {"a": DEEP, "b": copy.deepcopy(DEEP), "data": ROWS, "points": 3, "loss_fn": loss_fn},
    ),
    "anchor": (anchored, {"optimizer": None, "scale": 0.1, "seed": 0}),
    "guard": (guarded, {"monitor": None, "above": 1.0, "do": "warn"}),
    "suggest": (
        eq.suggest,
        {
            "model": LINE, "inputs": ROWS, "targets": ROWS[:, :2], "claims": [], "ways": ["tied"],
            "loss": nn.functional.mse_loss, "steps": 1, "folds": 2, "repeats": 1, "infer": False,
            "seconds": 60.0, "seed": 0,
        },
    ),
    "wider": (choose.wider, {"model": DEEP, "factor": 2.0, "multiple": 1, "sample": ROWS}),
    "Augmented": (choose.Augmented, {"model": NET, "claim": TURNS, "elements": 2, "seed": 0}),
    "band_limited": (resampling.band_limited, {"x": X, "cycles": 0.1}),
}  # fmt: skip
for name, kind in PROBES.items():
    made = kind()
    CALLS[f"probe {name}"] = (
        kind, {f.name: getattr(made, f.name) for f in dataclasses.fields(kind)},
    )  # fmt: skip
