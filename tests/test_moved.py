"""Import paths of 0.1 lead to where things are now, and say so."""

import importlib
import subprocess
import sys
import warnings

import pytest

from eqtoolbox import symmetry
from eqtoolbox.moved import place_of

PUBLIC = {  # modules that README and examples of 0.1 named
    "": {
        "arrays": "record", "audit": "symmetry", "budget": "watch", "cli": "command",
        "config": "attach", "isolation": "replay", "journal": "watch", "monitor": "watch",
        "objective": "replay", "probe": "watch", "reading": "replay", "schedule": "record",
        "sink": "record", "snapshot": "watch", "source": "attach", "testing": "symmetry",
    },
    "symmetry.": {
        "alike": "symmetry.actions", "boosts": "symmetry.actions", "charges": "weights.charges",
        "discovery": "weights", "epsilon": "weights", "fields": "symmetry.actions",
        "finite": "symmetry.groups", "foreign": "symmetry.actions", "group": "symmetry.groups",
        "irregular": "symmetry.groups", "linear": "symmetry.actions",
        "matrices": "symmetry.groups", "parameter": "weights", "permuting": "symmetry.actions",
        "resampling": "symmetry.actions", "scaling": "symmetry.actions",
        "tangent": "symmetry.actions", "unbounded": "symmetry.groups",
    },
    "symmetry.families.": {"diagonal": "weights.families"},
    "symmetry.search.": {"find": "weights.search", "trace": "weights.tracing"},
    "capture.": {"loss_capture": "watch.capture", "window": "replay"},
}  # fmt: skip
MODULES = {
    f"eqtoolbox.{package}{name}": f"eqtoolbox.{room}.{name}"
    for package, modules in PUBLIC.items()
    for name, room in modules.items()
}
SYMMETRY = {
    "Alike", "Kept", "Discovery", "DataAsymmetry", "Culprit", "batch_of_one", "factor",
    "one_sample", "Euclidean", "Lorentz", "O2", "Octahedral", "Orthogonal", "Product", "Scalings",
    "Semidirect", "Strengths", "LayerShare", "ContinuousSymmetry", "DiscreteSymmetry",
    "ParameterSymmetry", "discover",
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_an_old_module_has_the_names_of_the_new_one_and_warns(old: str, new: str) -> None:
    assert place_of(old) == new
    sys.modules.pop(old, None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module = importlib.import_module(old)
    assert f"{old} is now {new}" in " ".join(str(w.message) for w in said)
    assert {w.category for w in said} == {DeprecationWarning}
    there = importlib.import_module(new)
    names = [n for n in vars(there) if not n.startswith("_")]
    assert names
    assert all(getattr(module, n) is getattr(there, n) for n in names)
    assert {*names} <= {*dir(module)}


@pytest.mark.parametrize("name", sorted(SYMMETRY))
def test_names_that_left_the_symmetries_of_data_are_still_found_there(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"symmetry.{name} is now eqtoolbox"):
        assert getattr(symmetry, name).__name__ == name
    assert name not in symmetry.__all__


def test_modules_that_became_rooms_still_have_their_names() -> None:
    code = (
        "import eqtoolbox;"
        "from eqtoolbox.attach import attach; from eqtoolbox.record import Record;"
        "assert attach is eqtoolbox.attach and Record is eqtoolbox.Record"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"eqtoolbox\.nothing"):
        importlib.import_module("eqtoolbox.nothing")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        symmetry.nothing  # noqa: B018


def test_the_new_paths_do_not_warn() -> None:
    code = (
        "import eqtoolbox, eqtoolbox.probes, eqtoolbox.report, eqtoolbox.weights;"
        "import eqtoolbox.symmetry.groups, eqtoolbox.command.cli"
    )
    command = [sys.executable, "-W", "error::DeprecationWarning:eqtoolbox", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
