"""What does asymmetry cost: do the data share the symmetry, and who breaks it?"""

from collections.abc import Iterator

from eqtoolbox.report.drawing import PALETTE
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.trace import Curve, trace, traces
from eqtoolbox.report.words import number, percent, symmetry

AGAINST = -0.1  # cosine below which two gradients pull apart


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


def asymmetry_panels(run: Log) -> Iterator[Panel]:
    """Gradient of the part of the loss that the violation makes, against that of the rest."""
    kinds = (
        ("cosine", "Gradient of the violation against the rest",
         "Cosine between the gradient of the violation's part of the loss and that of the rest: "
         "below 0, fitting the data and keeping the symmetry pull apart."),
        ("share", "Weight of the violation in the gradient",
         "|G| / (|G| + |g|), G the gradient of the violation's part of the loss, g of the rest."),
        ("data", "Asymmetry of the data",
         "Energy coefficient between the batch and its transformed self: near the noise floor "
         "the data look the same after the transformation."),
    )  # fmt: skip
    for quantity, title, reading in kinds:
        found: dict[str, Curve] = traces(run, f"asymmetry/{quantity}")
        plot = Plot(last_step=run.last_step)
        colours = [PALETTE[i % len(PALETTE)] for i in range(len(found))]
        for (name, t), colour in zip(found.items(), colours, strict=True):
            plot.line(t, symmetry(name), colour, judge=quantity == "data")
        plot.floors(list(found.values()), colours)
        if found:
            yield plot.panel(f"asymmetry-{quantity}", title, reading)


TOPIC = Topic(
    question="What does asymmetry cost?",
    slug="asymmetry",
    explanation="Whether the data look alike after the transformation, and whether fitting them "
    "pulls against the symmetry.",
    rules=(asymmetry,),
    panels=(asymmetry_panels,),
    probes=("asymmetry",),
)
