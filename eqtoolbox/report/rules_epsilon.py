"""Rules about approximate symmetries: what the epsilon of normalisations explains of them."""

from collections.abc import Iterator

from eqtoolbox.report.finding import Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.rules_symmetry import floor_words
from eqtoolbox.report.trace import judged, trace, traces
from eqtoolbox.report.words import number, words


def epsilon(run: Log) -> Iterator[Finding]:
    """Whether a law that holds only approximately lacks what epsilon predicts, and no more."""
    for family, left in traces(run, "noether/epsilon").items():
        slope = trace(run, f"noether/slope/{family}")
        predicted = trace(run, f"noether/predicted_slope/{family}")
        if slope is None or predicted is None:
            continue
        second = trace(run, f"noether/epsilon_second_order/{family}")
        both = [t for t in (left, second) if t is not None]
        broken = [t for t in both if t.verdict == "violated"]
        law = f"The {words(family)} law"
        said = f"slope {number(slope.last.value, 2)} of the gradient's length measured, "
        said += f"{number(predicted.last.value, 2)} predicted"
        evidence = (slope.latest(), predicted.latest(), *(t.evidence() for t in both))
        if broken:
            when = broken[0].since([judged(r) == "violated" for r in broken[0].records])
            text = (
                f"{law} is broken {when} by more than the epsilon of the normalisations: {said}; "
            )
            text += f"{number(broken[0].now, 2)} is left{floor_words(broken[0])}."
            yield Finding(level="warning", text=text, evidence=evidence)
        elif all(t.verdict == "holds" for t in both):
            text = f"{law} holds but for the epsilon of the normalisations, which explains all of "
            text += f"it: {said}, {number(left.last.value, 2)} left{floor_words(left)}."
            yield Finding(level="good", text=text, evidence=evidence)
        else:
            text = f"{law}: whether epsilon explains what it lacks is undecided: {said}."
            yield Finding(level="note", text=text, evidence=evidence)
