"""Rules about what is learned: continuous symmetries, growing violations, asymmetric data."""

from collections.abc import Iterator

from eqtoolbox.report.finding import Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.trace import trace, traces
from eqtoolbox.report.words import number, percent, plural, symmetry

HAD = 0.1  # relative error below which a model counts as nearly symmetric
AGAINST = -0.1  # cosine below which two gradients pull apart


def learned(run: Log) -> Iterator[Finding]:
    """The algebra that the network has learned, when it did, and how clear its gap is."""
    dimension, gap = trace(run, "discovery/dimension"), trace(run, "discovery/gap")
    if dimension is None or gap is None:
        return
    evidence = (dimension.latest(), gap.latest())
    count, name = round(dimension.last.value), dimension.last.note
    null = trace(run, "discovery/null_gap")
    beside = "" if null is None else f" (shuffled data {number(null.last.value, 2)})"
    if not count:
        size = number(gap.last.value, 2)
        text = f"No continuous linear symmetry found: largest gap {size}{beside}."
        yield Finding(level="note", text=text, evidence=evidence)
        return
    steps = [r.step for r in dimension.records]
    lasting = len(steps)
    while lasting and round(dimension.records[lasting - 1].value) == count:
        lasting -= 1
    since = "from the start" if lasting == 0 else f"since step {steps[lasting]}"
    text = (
        f"The network's output ignores a continuous symmetry of {plural(count, 'dimension')}, "
        f"{name}, {since}: gap {number(gap.last.value, 2)}{beside}."
    )
    yield Finding(level="good", text=text, evidence=evidence)


def growth(run: Log) -> Iterator[Finding]:
    """Symmetries that the model had, or nearly had, in this run and has lost."""
    for name, grown in traces(run, "equivariance/growth").items():
        error = trace(run, f"equivariance/relative_error/{name}")
        if error is None or not grown.last.note.startswith("alarm"):
            continue
        _, _, fewer = grown.last.note.partition("; ")  # samples that keep their class
        if fewer or error.last.value < HAD * grown.last.value:
            text = (
                f"Symmetry under {symmetry(name)} is being lost: its error is "
                f"{number(grown.last.value, 2)}x its smallest in this run"
                + (f", {fewer}." if fewer else ".")
            )
            yield Finding(level="alarm", text=text, evidence=(grown.latest(),))


def asymmetry(run: Log) -> Iterator[Finding]:
    """Whether the data share the symmetry, and whether the gradient keeps or breaks it."""
    for name, data in traces(run, "asymmetry/data").items():
        if data.verdict == "violated":
            text = (
                f"The data are not symmetric under {symmetry(name)}: energy coefficient "
                f"{number(data.now, 2)} (random exchanges {number(data.floor or 0.0, 2)}); what a "
                "violation costs is said of the transformed data too."
            )
            yield Finding(level="note", text=text, evidence=(data.evidence(),))
    for name, cosine in traces(run, "asymmetry/cosine").items():
        if cosine.now < AGAINST:
            share = trace(run, f"asymmetry/share/{name}")
            size = "" if share is None else f", at {percent(share.now)} of the gradient"
            text = (
                f"Fitting the data breaks {symmetry(name)}: the gradient of the violation has "
                f"cosine {number(cosine.now, 2)} with the rest{size}."
            )
            yield Finding(level="note", text=text, evidence=(cosine.evidence(),))
