"""The neutrality matrix as a table: `python -m tests.neutrality.table` prints it as Markdown.

Every cell compares, bit by bit, a training with the monitor to the same training without.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from eqtoolbox.probes.asymmetry import Asymmetry
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.discrete import Discrete
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.probes.learned import LearnedAlgebra
from eqtoolbox.probes.noether import Noether
from eqtoolbox.probes.spectrum import Spectrum
from eqtoolbox.probes.tracking import Tracking
from eqtoolbox.watch.probe import Probe
from tests.neutrality.features import FEATURES, Feature
from tests.neutrality.watch import PLACES, SURFACES, Faithful, Watch

PROBES: dict[str, Probe] = {
    "equivariance": EquivarianceError(samples=2, symmetries=("cyclic4",)),
    "conservation": Conservation(),
    "noether": Noether(),
    "curvature": Curvature(k=1, max_matvecs=6, split=True, angles=True),
    "discrete": Discrete(pairs=1),
    "asymmetry": Asymmetry(symmetries=("cyclic4",)),
    "discovery": LearnedAlgebra(),
    "tracking": Tracking(max_matvecs=3),
    "spectrum": Spectrum(matvecs=6, probes=2, steps=2),
}


def make(names: Iterable[str]) -> list[Any]:
    """The same probes for every training: what they find out belongs to the run."""
    return [PROBES[name] for name in names]


CHEAP = ("equivariance", "conservation")


@dataclass(frozen=True)
class Cell:
    """One combination of a way to train, a surface, probes and the place where they measure."""

    feature: Feature
    surface: str = "decorator"
    probes: tuple[str, ...] = tuple(PROBES)
    place: str = "step"

    def __str__(self) -> str:
        names = "all probes" if len(self.probes) == len(PROBES) else ", ".join(self.probes)
        return f"{self.feature.name}; {self.surface}; {names}; {self.place}"

    def watch(self, alone: bool = False) -> Watch:
        """Train, alone or watched."""
        probes = make(self.probes)
        if self.place == "step":
            probes.append(Faithful())
        run = Watch(probes=None if alone else probes, surface=self.surface, place=self.place)
        try:
            self.feature.run(run)
        finally:
            run.close()
        return run


def by_surface() -> Iterator[Cell]:
    """Every way to train, on every surface."""
    for feature in FEATURES:
        for surface in SURFACES if feature.surfaces else SURFACES[:1]:
            yield Cell(feature, surface, tuple(PROBES) if surface == SURFACES[0] else CHEAP)


def by_place() -> Iterator[Cell]:
    """Every probe by itself, at every place of the plain loop."""
    for probe in PROBES:
        for place in ("step", *PLACES):
            yield Cell(FEATURES[0], probes=(probe,), place=place)


def outcome(cell: Cell, alone: dict[Any, Watch]) -> tuple[bool, Watch]:
    """Whether the two trainings are bit-identical, and the watched one."""
    key = (cell.feature.name, cell.surface)
    if key not in alone:
        alone[key] = cell.watch(alone=True)
    watched = cell.watch()
    return watched.trail == alone[key].trail, watched


def markdown(
    rows: str, cells: Iterable[Cell], place_of: Callable[[Cell], tuple[str, str]]
) -> Iterator[str]:
    """Lines of a table: `=` where the trainings are bit-identical."""
    alone: dict[Any, Watch] = {}
    table: dict[str, dict[str, str]] = {}
    for cell in cells:
        row, column = place_of(cell)
        same, _ = outcome(cell, alone)
        table.setdefault(row, {})[column] = "=" if same else "**changed**"
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    yield f"| {rows} | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for name, row in table.items():
        yield f"| {name} | " + " | ".join(row.get(c, "") for c in columns) + " |"


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for line in markdown("training", by_surface(), lambda c: (c.feature.name, c.surface)):
        print(line)
    print()
    places = {"step": "in the step", **{place: f"probe_now() {place}" for place in PLACES}}
    for line in markdown("probe", by_place(), lambda c: (c.probes[0], places[c.place])):
        print(line)


if __name__ == "__main__":
    main()
