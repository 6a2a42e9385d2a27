"""Negative controls of the laws: symmetries of one network, claimed of another."""

import pytest

from eqtoolbox.probes import symmetries
from eqtoolbox.snapshot import Snapshot
from eqtoolbox.symmetry.parameter import ParameterSymmetry


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found in the first network of the test is claimed of all the others."""
    find, found = symmetries._find, list[list[ParameterSymmetry]]()

    def first(snapshot: Snapshot) -> list[ParameterSymmetry]:
        if not found:
            found.append(find(snapshot))
        return found[0]

    monkeypatch.setattr(symmetries, "_find", first)
