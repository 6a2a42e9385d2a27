"""Rules about units: duplicates, dead ones, and pairs that merge or part."""

from collections.abc import Iterator

from eqtoolbox.report.finding import Evidence, Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.trace import Trace, trace, traces
from eqtoolbox.report.words import listing, number, plural

ALIKE = 1e-6  # relative distance of units that count as equal


def duplicates(run: Log) -> Iterator[Finding]:
    """Pairs of units that are equal: a network with one of each would compute the same."""
    pairs = _lasting(run, "discrete/duplicates")
    if pairs is not None:
        text = f"{plural(round(pairs.last.value), 'pair')} of units are duplicates, equal to "
        text += f"rounding in all their weights: {pairs.last.note}."
        yield Finding(level="warning", text=text, evidence=(pairs.latest(),))


def dead(run: Log) -> Iterator[Finding]:
    """Units that do nothing, in which layers, and why; a layer that is dead as a whole."""
    units = _lasting(run, "discrete/dead")
    if units is None:
        yield from _silent(run)
        return
    count = round(units.last.value)
    verb = "is" if count == 1 else "are"
    shares = {
        layer: t
        for layer, t in traces(run, "discrete/dead_share").items()
        if t.last.step == units.last.step
    }
    where = "; ".join(f"in {layer} {t.last.note}" for layer, t in shares.items())
    where = f" ({where})" if where else ""
    whole = [layer for layer, t in shares.items() if t.last.value == 1]
    text = f"{plural(count, 'unit')} {verb} dead{where}: {units.last.note}."
    if whole:
        text += f" Nothing passes {listing(whole)}: what comes after is the same for every input."
    level: Level = "alarm" if whole else "warning"
    evidence = units.latest(), *(t.latest() for t in shares.values())
    yield Finding(level=level, text=text, evidence=evidence)


def _silent(run: Log) -> Iterator[Finding]:
    """Units that did nothing on the few batches that were measured."""
    rows = run.records("discrete/dead") if "discrete/dead" in run else []
    if rows and rows[-1].status == "not_converged" and rows[-1].value > 0:
        last = rows[-1]
        text = (
            f"{plural(round(last.value), 'unit')} did nothing on the few batches measured so far "
            f"({len(rows)}), too few to call them dead: {last.note}."
        )
        evidence = (Evidence(name=last.name, step=last.step, value=last.value),)
        yield Finding(level="note", text=text, evidence=evidence)


def collapse(run: Log) -> Iterator[Finding]:
    """Units near a symmetric point, and whether training falls into it or leaves it."""
    for rank, near in traces(run, "discrete/nearest").items():
        margin = trace(run, f"discrete/margin/{rank}")
        if margin is None or margin.last.step != near.last.step or _outdated(run, near):
            continue
        who, size, error = near.last.note, margin.last.value, margin.last.stderr or 0.0
        pair = " and " in who
        alike = near.last.value <= ALIKE
        level: Level = "note"
        if abs(size) <= error:
            fate = "deviations neither grow nor shrink to first order"
        elif size > 0:
            level = "warning"
            fate = "all deviations shrink" if alike else "about to merge" if pair else "dying"
        else:
            fate = (
                "some deviations grow"
                if alike
                else "parting in some direction"
                if pair
                else "growing"
            )
        bend = trace(run, f"discrete/normal_curvature/{rank}")
        why = f"margin {number(size)}"
        if bend is not None and bend.last.step == near.last.step:
            decay = size - bend.last.value
            why = f"smallest curvature {number(bend.last.value)} against -{number(decay)} of decay"
            _, _, metric = bend.last.note.partition("; in the metric of ")
            why += f", in the metric of {metric.partition(';')[0]}" if metric else ""
        place = "equal" if alike else f"near each other (distance {number(near.last.value)})"
        if not pair:
            place = f"near zero ({number(near.last.value)} of its layer)"
        verb = "are" if pair else "is"
        text = f"{who} {verb} {place}: {fate} ({why})."
        yield Finding(level=level, text=text, evidence=(near.latest(), margin.latest()))


def _lasting(run: Log, name: str) -> Trace | None:
    """A count that is not zero now and was not for most of the last measurements."""
    t = trace(run, name)
    return t if t is not None and t.last.value > 0 and t.now > 0 else None


def _outdated(run: Log, near: Trace) -> bool:
    """Whether distances were measured later, at which nothing was near any more."""
    distances = traces(run, "discrete/distance").values()
    return any(t.last.step > near.last.step for t in distances)
