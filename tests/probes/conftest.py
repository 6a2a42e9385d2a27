"""What probes find out for a run: counted, or claimed of another network as negative control."""

import pytest

from eqtoolbox.probes import engine, symmetries
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.weights.search import homogeneous
from eqtoolbox.weights.search.found import Found, KnownSymmetries


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found in the first network of the test is claimed of all the others."""
    find, found = symmetries._find, list[Found]()

    def first(snapshot: Snapshot, known: KnownSymmetries | None) -> Found:
        if not found:
            found.append(find(snapshot, known))
        return found[0]

    monkeypatch.setattr(symmetries, "_find", first)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Homogeneity is claimed of losses that see parameters beside the output: it may break."""
    monkeypatch.setattr(homogeneous, "_by_output_alone", lambda trace, output: True)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which symmetries were looked for."""
    find, seen = symmetries._find, list[int]()
    monkeypatch.setattr(
        symmetries, "_find", lambda s, known: (seen.append(s.step), find(s, known))[1]
    )
    return seen


@pytest.fixture
def tests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each self-test."""
    test, seen = engine.self_test, list[int]()
    monkeypatch.setattr(
        engine, "self_test", lambda *given, **how: (seen.append(1), test(*given, **how))[1]
    )
    return seen
