"""Imports run downward only, rooms stay strangers where they should, and files stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "eqtoolbox"
FLOORS = {
    "linalg": 1, "symmetry": 1, "snapshot": 1, "schedule": 1, "record": 1, "isolation": 1,
    "objective": 1, "capture": 1, "derivatives": 1, "arrays": 1, "source": 1, "eager": 1,
    "extra": 1, "identity": 1, "shared": 1, "replay": 1, "files": 1, "deadline": 0,
    "interrupts": 0, "expect": 0, "precision": 0, "toml": 1,
    "probe": 2, "sink": 2, "report": 2, "testing": 2,
    "probes": 3, "sinks": 3, "enforce": 3, "monitor": 3, "budget": 3, "clock": 3, "journal": 3,
    "runner": 3, "account": 3, "faithfulness": 3, "time_limit": 3, "catch": 3,
    "checkpoint": 3, "told": 3,
    "config": 4, "attach": 4, "integrations": 4, "demos": 4,
    "reading": 1, "audit": 4, "audit_table": 4, "checking": 4,
    "cli": 5, "blame": 5, "__init__": 5, "__main__": 5,
}  # fmt: skip
STRANGERS = {
    ("linalg", "symmetry"), ("symmetry", "linalg"),
    ("monitor", "probes"), ("monitor", "sinks"), ("probes", "sinks"), ("sinks", "probes"),
    ("probes", "monitor"), ("sinks", "monitor"), ("report", "probe"), ("report", "sink"),
}  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """Rooms of eqtoolbox that the source imports, at any depth."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: import from the defining module"
            if node.module == "eqtoolbox":
                rooms |= {alias.name for alias in node.names}
            elif (node.module or "").startswith("eqtoolbox."):
                rooms.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("eqtoolbox.")
            }
    return rooms & FLOORS.keys()


def violations(here: str, source: str) -> list[str]:
    found = []
    for there in imported_rooms(source) - {here}:
        if FLOORS[there] > FLOORS[here]:
            found.append(f"{here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS[there]})")
        if (here, there) in STRANGERS:
            found.append(f"{here} and {there} are strangers")
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downward(path: Path) -> None:
    assert room(path) in FLOORS, f"{path} is in no room; give it a floor"
    assert violations(room(path), path.read_text()) == []


def test_an_upward_import_is_caught() -> None:
    assert violations("linalg", "from eqtoolbox.watch.monitor import Monitor")
    assert violations("symmetry", "def f():\n    import eqtoolbox.linalg.lanczos")
    assert violations("monitor", "from eqtoolbox.probes.curvature import Curvature")
    assert not violations("cli", "from eqtoolbox.report import Run")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_says_in_one_sentence_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


def test_public_names_stay_few() -> None:
    import eqtoolbox

    assert len(eqtoolbox.__all__) <= 30
    assert all(hasattr(eqtoolbox, name) for name in eqtoolbox.__all__)
