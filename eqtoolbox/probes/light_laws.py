"""Light laws: what every law lacks at a step, beside floors that were found at an earlier one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from eqtoolbox.probes.epsilon import approximate
from eqtoolbox.probes.floors import Floors
from eqtoolbox.probes.law import Elements, Members
from eqtoolbox.probes.law_rounding import LawRounding
from eqtoolbox.probes.law_rows import dimension, residual, resting
from eqtoolbox.probes.right_sides import RightSides
from eqtoolbox.probes.zeroth_order import ZerothOrder
from eqtoolbox.watch.probe import Measurement


def lightly(
    rounding: LawRounding, families: Members, elements: Elements, floors: Floors
) -> Iterator[Measurement]:
    """The residuals of all laws; where one fails by its floor, that is found anew.

    Args:
        rounding: of the laws at this step.
        families, elements: what is measured, along which elements.
        floors: of an earlier step, which take what is found.
    """
    here, objective = rounding.here, rounding.objective
    sides = RightSides(objective, here, families, elements, asks=False)
    scale = here.curvature_scale()
    here.release()
    zeroth = ZerothOrder(objective, here.params, rounding.amount, rounding.rng)
    yield from sides.refused()

    moving = {f: m for f, m in sides.families.items() if sides.laws[f].length > 0}
    known = {f: floors.of("zeroth_order", f) for f in moving}
    zeroths = zeroth.of_all(moving, elements, {}, known)
    totals = {f: sides.laws[f].total(rounding.eps, scale) for f in moving}

    def residuals(family: str) -> list[Measurement]:
        law, rates = sides.laws[family], sides.rates.get(family)
        size, total = here.size * law.length, totals[family]
        sharing = [f for f in sides.sharing(family) if f in totals]
        second = max(floors.of("second_order", f) * totals[f] for f in sharing)
        first, zero = floors.of("first_order", family), zeroths[family]
        if rates is not None:  # asked of epsilon since
            of = sides.families[family], elements[family]
            zero = zeroth.of(family, *of, rates, floors.of("zeroth_order", family))
        first, second = max(first, abs(law.p) / size), max(second, law.p_slope) / total
        rows = [
            zero,
            residual("first_order", family, abs(law.slope) / size, first, matvecs=0),
            residual("second_order", family, law.defect / total, second, law.matvecs),
        ]
        return [replace(row, facts={"floor_of_step": floors.found(row.quantity)}) for row in rows]

    rows = {family: residuals(family) for family in moving}
    for family in dict.fromkeys(row.target for row in _failing(rows)):
        if sides.asked(here.params, family):
            rows[family] = residuals(family)
    if failing := _failing(rows):
        still = {r.target: moving[r.target] for r in failing if r.quantity == "zeroth_order"}
        zeroths |= zeroth.of_all(still, elements, {})
        _find_anew(failing, floors, rounding, sides, zeroths, totals)
        rows = {family: residuals(family) for family in moving}
    for family in sides.laws:
        yield from dimension(family, sides.families[family])
        yield from rows[family] if family in rows else resting(family)


def _find_anew(
    failing: Sequence[Measurement],
    floors: Floors,
    rounding: LawRounding,
    sides: RightSides,
    zeroths: Mapping[str, Measurement],
    totals: Mapping[str, float],
) -> None:
    """Find the floors of these rows at this step: rounding changes as training goes on."""
    step, quantities, first = rounding.snapshot.step, {row.quantity for row in failing}, 0.0
    near = approximate(sides.families)
    if "first_order" in quantities:
        first = rounding.of_first(sides)
    again = {row.target for row in failing if row.quantity == "second_order"}
    if again:
        rounding.of_second(sides)
        again |= {f for f in totals if f not in near}  # no exact law shares a product any more
    for family in again:
        noise = max(sides.noise.get(family, 0.0) / totals[family], rounding.eps)
        floors.keep(step, Measurement("second_order", 0.0, family, floor=noise))
    for row in failing:
        if row.quantity == "zeroth_order":
            floors.keep(step, replace(row, floor=zeroths[row.target].floor))
        elif row.quantity == "first_order":
            floors.keep(step, replace(row, floor=max(first, sides.first_noise)))


def _failing(rows: Mapping[str, Sequence[Measurement]]) -> list[Measurement]:
    """Those of the rows of all families that do not hold."""
    return [row for of in rows.values() for row in of if row.verdict != "holds"]
