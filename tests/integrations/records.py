"""What two runs must have in common: numbers and steps of everything but clocks."""

from pathlib import Path

import eqtoolbox as eq

KEPT = ("conservation", "curvature", "training")


def rows(run: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of each measured number of a run."""
    found = [r for r in eq.Run(run).records() if r.probe in KEPT]
    return [(r.step, r.name, r.value) for r in found]
