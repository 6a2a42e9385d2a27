"""Do units merge or die: duplicates, dead ones, and pairs that merge or part."""

from collections.abc import Iterator

from eqtoolbox.record.record import Record
from eqtoolbox.report.drawing import PALETTE
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import Evidence, Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.table import LARGEST
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.trace import Curve, trace, traces
from eqtoolbox.report.words import listing, number, plural

ALIKE = 1e-6  # relative distance of units that count as equal
MANY = 0.5  # of a layer's units: fewer dead ones are usual, and the layer has others
REVIVE = (
    "re-initialise the dead units and lower the learning rate (or warm it up)",
    "use a leaky activation: LeakyReLU or GELU",
    "check the biases: large negative ones keep units silent",
)
DISTANCES = {"permutation": "two units equal", "sign_flip": "a unit zero"}


def duplicates(run: Log) -> Iterator[Finding]:
    """Pairs of units that are equal: a network with one of each would compute the same."""
    pairs = _lasting(run, "discrete/duplicates")
    if pairs is not None:
        text = f"{plural(round(pairs.last.value), 'pair')} of units are duplicates, equal to "
        text += f"rounding in all their weights: {_named(pairs.last)}."
        evidence = (pairs.latest(),)
        yield Finding(level="warning", text=text, evidence=evidence, id="duplicate-units")


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
    where = "; ".join(f"in {layer}{_share_words(t.last)}" for layer, t in shares.items())
    where = f" ({where})" if where else ""
    whole = [layer for layer, t in shares.items() if t.last.value == 1]
    text = f"{plural(count, 'unit')} {verb} dead{where}: {_named(units.last)}."
    if whole:
        text += f" Nothing passes {listing(whole)}: what comes after is the same for every input."
    level: Level = "alarm" if whole else "warning"
    if shares and all(t.last.value < MANY for t in shares.values()):
        level = "note"
    evidence = units.latest(), *(t.latest() for t in shares.values())
    yield Finding(level=level, text=text, evidence=evidence, id="dead-units", remedy=REVIVE)


def _named(row: Record) -> str:
    """The units that a row names, and how many more there are."""
    named = row.facts.texts("units")
    rest = round(row.value) - len(named)
    return "; ".join([*named, *([f"{rest} more"] if named and rest > 0 else [])])


def _share_words(row: Record) -> str:
    """How many units of a layer are dead, and on how much that rests."""
    count = row.facts.count
    dead, units, batches, samples = map(count, ("dead", "units", "batches", "samples"))
    if dead is None:
        return ""
    on = f"{batches} batches in a row" if batches != 1 else "the only batch measured"
    return f" {dead} of {units} units on {on}, {samples} samples"


def _silent(run: Log) -> Iterator[Finding]:
    """Units that did nothing on the few batches that were measured."""
    rows = run.records("discrete/dead") if "discrete/dead" in run else []
    if rows and rows[-1].status == "not_converged" and 0 < rows[-1].value <= LARGEST:
        last = rows[-1]
        text = (
            f"{plural(round(last.value), 'unit')} did nothing on the few batches measured so far "
            f"({len(rows)}), too few to call them dead: {_named(last)}."
        )
        evidence = (Evidence(name=last.name, step=last.step, value=last.value),)
        yield Finding(level="note", text=text, evidence=evidence)


def collapse(run: Log) -> Iterator[Finding]:
    """Units near a symmetric point, and whether training falls into it or leaves it."""
    for rank, near in traces(run, "discrete/nearest").items():
        margin = trace(run, f"discrete/margin/{rank}")
        if margin is None or margin.last.step != near.last.step or _outdated(run, near):
            continue
        who, pair = near.last.facts.text("which"), near.last.facts.flag("pair")
        size, error = margin.last.value, margin.last.stderr or 0.0
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
            against = f" against -{number(decay)} of decay" if decay else ""
            why = f"smallest curvature {number(bend.last.value)}{against}"
            metric = bend.last.facts.text("metric")
            why += f", in the metric of {metric}" if metric else ""
        place = "equal" if alike else f"near each other (distance {number(near.last.value)})"
        if not pair:
            place = f"near zero ({number(near.last.value)} of its layer)"
        verb = "are" if pair else "is"
        text = f"{who} {verb} {place}: {fate} ({why})."
        evidence = (near.latest(), margin.latest())
        yield Finding(level=level, text=text, evidence=evidence, id="" if alike else "near-units")


def _lasting(run: Log, name: str) -> Curve | None:
    """A count that is not zero now and was not for most of the last measurements."""
    t = trace(run, name)
    return t if t is not None and t.last.value > 0 and t.now > 0 else None


def _outdated(run: Log, near: Curve) -> bool:
    """Whether distances were measured later, at which nothing was near any more."""
    distances = traces(run, "discrete/distance").values()
    return any(t.last.step > near.last.step for t in distances)


def discrete_panels(run: Log) -> Iterator[Panel]:
    """Distances to the symmetric points, margins there, and counts of duplicate and dead units."""
    found = traces(run, "discrete/distance")
    log = all(r.value > 0 for t in found.values() for r in t.records)
    plot = Plot(last_step=run.last_step, log=log)
    colours = PALETTE[: len(found)]
    for (family, t), colour in zip(found.items(), colours, strict=True):
        plot.line(t, DISTANCES.get(family, family), colour)
    plot.floors(list(found.values()), colours)
    if found:
        reading = (
            "Relative distance of the nearest units to a symmetric point: near 1 units are "
            "unrelated, at the noise floor two are duplicates."
        )
        yield plot.panel("discrete-distance", "Distance to symmetric points", reading)
    yield from _margins(run)
    yield from _counts(run)
    yield from _shares(run)


def _margins(run: Log) -> Iterator[Panel]:
    plot = Plot(last_step=run.last_step)
    for i, (rank, t) in enumerate(traces(run, "discrete/margin").items()):
        plot.line(t, f"nearest {rank}", PALETTE[i % len(PALETTE)])
    if plot.data:
        plot.level(0.0, "merge above")
        reading = (
            "Smallest curvature plus weight decay in the directions that tell the nearest units "
            "apart: above 0 they merge, below they part."
        )
        yield plot.panel("discrete-margin", "Do the nearest units merge?", reading)


def _counts(run: Log) -> Iterator[Panel]:
    plot = Plot(last_step=run.last_step)
    for i, name in enumerate(("duplicates", "dead")):
        t = trace(run, f"discrete/{name}")
        if t is not None and any(r.value for r in t.records):
            plot.line(t, name, PALETTE[i])
    if plot.data:
        reading = "Pairs of units that are equal to rounding, and units that do nothing."
        yield plot.panel("discrete-counts", "Duplicate and dead units", reading)


def _shares(run: Log) -> Iterator[Panel]:
    """Layers with dead units, the worst ones."""
    found = traces(run, "discrete/dead_share")
    worst = sorted(found.items(), key=lambda item: -item[1].last.value)[: len(PALETTE)]
    plot = Plot(last_step=run.last_step, scale=100.0, suffix=" %")
    for (layer, t), colour in zip(worst, PALETTE, strict=False):
        plot.line(t, layer, colour)
    if plot.data:
        reading = "Share of each layer's units that did nothing on batch after batch; at 100 % no "
        reading += "input passes the layer."
        yield plot.panel("discrete-dead-share", "Dead units by layer", reading)


TOPIC = Topic(
    question="Do units merge or die?",
    slug="units",
    explanation="Near a point where two units are equal, or one is zero, the loss itself decides "
    "whether training falls into it or leaves it.",
    remedy=(
        "initialise each unit by its own random draw: no constants, no copies",
        "re-initialise the units that do nothing",
    ),
    rules=(duplicates, dead, collapse),
    panels=(discrete_panels,),
    probes=("discrete",),
)
