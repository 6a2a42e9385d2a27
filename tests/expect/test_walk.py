"""One argument of every public call spoilt at a time: what answers is ours and names it."""

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import eqtoolbox
from eqtoolbox import act, choose, enforce, linalg, symmetry, weights
from eqtoolbox.linalg.vectors import combine
from eqtoolbox.symmetry import groups
from tests.expect.public import CALLS, Good

PACKAGE = str(Path(eqtoolbox.__file__).parent)


class Alien:
    """No function here has a use for it."""


NONSENSE: dict[str, Any] = {
    "alien": Alien(),
    "class": Alien,
    "nan": float("nan"),
    "bytes": b"ab",
    "number": 2.5,
    "complex": torch.ones(3, dtype=torch.complex64),
}
ANYTHING = {"batch", "data", "probe_batch", "tree"}  # arguments that are handed on as they come
NUMBERS = {  # 2.5 is a good value for these, NaN for the first three
    "value", "stderr", "floor", "spread", "rapidity", "octaves", "radius", "tolerance", "cycles",
    "weight", "accuracy", "peak", "growth", "scale", "factor", "seconds", "above",
}  # fmt: skip
WORDS = {"probes": ("Probe",), "elements": ("g must",), "x": ("on shape",)}  # that name it, too
LISTS = {"sinks", "labels"}  # whose items are not looked at here, or may be anything that counts


def fine(argument: str, kind: str) -> bool:
    """Whether this is no nonsense for the argument."""
    if argument in ANYTHING:
        return True
    if argument in ("value", "stderr", "floor") and kind == "nan":
        return True
    return (argument in NUMBERS and kind == "number") or (
        argument in LISTS and kind in ("bytes", "complex")
    )


def complaints(call: Callable[..., Any], good: Good, argument: str) -> list[str]:
    """What the call does wrong with nonsense for one of its arguments."""
    found = []
    for kind, value in NONSENSE.items():
        if fine(argument, kind):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(**{**good, argument: value})
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1].filename
            if not where.startswith(PACKAGE):
                found.append(f"{kind}: raised in {where}: {error}")
            elif not any(word in str(error) for word in (argument, *WORDS.get(argument, ()))):
                found.append(f"{kind}: does not name {argument}: {error}")
        else:
            found.append(f"{kind}: accepted")
    return found


PAIRS = [(name, argument) for name, (_, good) in CALLS.items() for argument in good]


@pytest.mark.parametrize("name", CALLS)
def test_the_arguments_from_which_the_walk_starts_are_taken(name: str) -> None:
    call, good = CALLS[name]
    call(**good)


@pytest.mark.parametrize(("name", "argument"), PAIRS)
def test_nonsense_is_answered_by_us_with_the_name_of_the_argument(name: str, argument: str) -> None:
    call, good = CALLS[name]
    assert complaints(call, good, argument) == []


def test_a_function_that_checks_nothing_is_caught() -> None:
    def unchecked(k: int) -> Any:
        return torch.ones(k) if not isinstance(k, float) else k

    found = complaints(unchecked, {}, "k")
    assert any("accepted" in complaint for complaint in found)
    assert any("raised in" in complaint for complaint in found)

    def vague(the_k: int) -> None:
        combine([the_k], [])  # refuses in our own frame, and does not name what it was given

    found = complaints(vague, {}, "the_k")
    assert len(found) == len(NONSENSE)
    assert all("does not name the_k" in complaint for complaint in found)


def test_every_public_name_is_walked() -> None:
    """A new public function or constructor comes into the table, or is a result or a base."""
    results = {
        "Culprit", "DataAsymmetry", "Discovery", "EigenResult", "EquivarianceResult", "Estimate",
            "Found",
        "LayerShare", "LieDerivative", "NotApplicable", "Record", "Snapshot", "SpectralDensity",
        "SpectralMoments", "TrackedValue", "Balanced", "Moved", "Suggestion", "Suggestions", "Tied",
    }  # fmt: skip
    bases = {
        "ContinuousSymmetry", "DiscreteSymmetry", "Group", "LinearOperator", "ParameterSymmetry",
        "Probe", "Sink",
    }  # fmt: skip
    without = {
        "Flip", "O2", "O3", "SO2", "SO3", "Sign", "act", "actions", "enforce", "linalg", "symmetry",
        "weights",
    }  # fmt: skip
    elsewhere = {"Monitor", "Run", "Chain", "Product", "batch_of_one"}  # test_calls, report
    rooms = (eqtoolbox, act, choose, enforce, linalg, symmetry, groups, weights)
    named = {name for room in rooms for name in room.__all__}
    assert named - results - bases - without - elsewhere <= CALLS.keys()
