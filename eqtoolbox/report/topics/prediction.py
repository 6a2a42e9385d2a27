"""Does the gradient predict the curvature along symmetries?"""

from collections.abc import Iterator
from dataclasses import replace

from eqtoolbox.report.drawing import PALETTE
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import FEW, Finding, Level
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics.laws import moving
from eqtoolbox.report.trace import Curve, trace, traces
from eqtoolbox.report.words import listing, number, percent, words

AGREES = 0.02  # relative: both Rayleigh quotients come from float32 products
FLAT = 1e-6  # of the sharpness: rounding of a float32 Hessian-vector product


def predicted_curvature(run: Log) -> Iterator[Finding]:
    """Whether the gradient alone predicts the curvature along symmetry directions."""
    sharpness = trace(run, "curvature/sharpness")
    flat = FLAT * abs(sharpness.now) if sharpness else 0.0
    right: dict[str, tuple[Curve, Curve]] = {}
    for family, measured in traces(run, "noether/rayleigh").items():
        predicted = trace(run, f"noether/predicted_rayleigh/{family}")
        if predicted is None or predicted.last.step != measured.last.step:
            continue
        m, p = measured.last.value, predicted.last.value
        noise = max(measured.error, predicted.error, flat)
        where = f"curvature along {words(family)} directions"
        said = f"predicted {number(p)}, measured {number(m)}"
        level: Level = "good"
        if max(abs(m), abs(p)) <= noise:
            text = f"The {where} is zero within its error ({said}, error {number(noise, 2)})."
        elif abs(m - p) <= AGREES * max(abs(m), abs(p)):
            right[family] = (measured, predicted)
            continue
        elif abs(m - p) <= noise:
            level = "note"
            text = f"The {where} agrees with the gradient's prediction within its error: {said}, "
            text += f"error {number(noise, 2)}."
        else:
            level = "warning"
            text = f"The {where} is not what the gradient predicts: {said}."
        yield Finding(level=level, text=text, evidence=(measured.latest(), predicted.latest()))
    sources = {family: _source(run, family) for family in right}
    for source in dict.fromkeys(sources.values()):
        yield from _right({f: pair for f, pair in right.items() if sources[f] == source}, source)


def _source(run: Log, family: str) -> str:
    """What the prediction of a curvature was made from."""
    if moving(run, family):
        return "gradient and outputs alone"
    near = trace(run, f"noether/epsilon/{family}") is not None
    return "gradient and epsilon alone" if near else "the gradient alone"


def _right(right: dict[str, tuple[Curve, Curve]], by: str) -> Iterator[Finding]:
    """Predictions that came true, all made from the same."""
    if len(right) > FEW:
        apart = max(abs(p.last.value / m.last.value - 1) for m, p in right.values())
        names = listing([words(f) for f in right])
        text = f"The curvature along {names} directions is predicted by {by}, to {percent(apart)}."
        evidence = tuple(t.latest() for pair in right.values() for t in pair)
        yield Finding(level="good", text=text, evidence=evidence)
        return
    for family, (measured, predicted) in right.items():
        said = f"predicted {number(predicted.last.value)}, measured {number(measured.last.value)}"
        text = f"The curvature along {words(family)} directions is predicted by {by}: {said}."
        yield Finding(level="good", text=text, evidence=(measured.latest(), predicted.latest()))


def rayleigh_panel(run: Log) -> Iterator[Panel]:
    """Measured and predicted Rayleigh quotients along symmetry directions."""
    plot = Plot(last_step=run.last_step, measure="Rayleigh quotient")
    for i, (family, measured) in enumerate(traces(run, "noether/rayleigh").items()):
        colour = PALETTE[i % len(PALETTE)]
        plot.line(
            measured, f"{words(family)}, measured", colour, mode="lines", width=6, dash="solid"
        )
        plot.data[-1]["opacity"] = 0.35
        key = replace(plot.keys.pop(), label=words(family))
        predicted = trace(run, f"noether/predicted_rayleigh/{family}")
        if predicted is not None:
            plot.line(predicted, f"{words(family)}, predicted", colour, width=1.4, dash="solid")
            key = replace(key, traces=key.traces + plot.keys.pop().traces)
        plot.keys.append(key)
    if plot.data:
        reading = (
            "Rayleigh quotients of the Hessian: broad pale lines are measured, thin lines "
            "predicted from the gradient alone; they agree while the symmetry is exact."
        )
        yield plot.panel("rayleigh", "Curvature along symmetry directions", reading)


TOPIC = Topic(
    question="Does the gradient predict the curvature along symmetries?",
    slug="prediction",
    explanation="Along a symmetry the gradient alone says how the loss bends; its chart stands "
    "beside the other curvatures.",
    remedy=(
        "check the loss for parts that are not smooth or not repeatable",
        "rerun the probe in float64",
    ),
    rules=(predicted_curvature,),
)
