"""Does the training gradient obey the laws: at every step, and by how much not?"""

from collections.abc import Iterator
from dataclasses import replace

from eqtoolbox.report.figures import Panel, Plot, by_target
from eqtoolbox.report.finding import BROKEN_LAW, FEW, Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics.charges import law_undecided
from eqtoolbox.report.trace import Curve, floor_words, judged, trace, traces
from eqtoolbox.report.words import listing, number, plural, words


def gradient_laws(run: Log) -> Iterator[Finding]:
    """Whether the gradient that the optimizer was given obeys the laws, at every step."""
    obeyed: dict[str, Curve] = {}
    for family, law in traces(run, "conservation/first_order").items():
        size = _size(run, family, law)
        name = words(family)
        if law.verdict == "violated":
            when = law.since([judged(r) == "violated" for r in law.records])
            text = (
                f"The training gradient breaks the {name} law {when}: {size}; something beside "
                "the loss shapes it, such as a penalty added to it, or the loss lost the symmetry."
            )
            evidence = (law.evidence(),)
            yield Finding(level="note", text=text, evidence=evidence, dated=law.once, id=BROKEN_LAW)
        elif law.verdict == "holds" and not law_undecided(run, family):
            broken = sum(judged(r) == "violated" for r in law.records)
            if not broken:
                obeyed[family] = law
                continue
            every = f"at {len(law.records) - broken} of {plural(len(law.records), 'step')}"
            text = f"The training gradient obeys the {name} law {every}: {size}."
            yield Finding(level="note", text=text, evidence=(law.evidence(),))
    yield from _obeyed(run, obeyed)


def _size(run: Log, family: str, law: Curve) -> str:
    """How large a slope is; of an approximate law also what its epsilon leaves unexplained."""
    size = f"slope {number(law.now, 2)} of the gradient's length{floor_words(law)}"
    left = trace(run, f"conservation/epsilon/{family}")
    if left is None or law.last.step != left.last.step:
        return size
    return f"{size}, of which epsilon leaves {number(left.now, 2)}"


def _obeyed(run: Log, obeyed: dict[str, Curve]) -> Iterator[Finding]:
    """Laws that the training gradient never broke: each by itself, or many in one sentence."""
    near = {f: law for f, law in obeyed.items() if trace(run, f"conservation/epsilon/{f}")}
    if near and len(near) < len(obeyed):  # a slope that epsilon explains is no measure of others
        yield from _obeyed(run, near)
        obeyed = {f: law for f, law in obeyed.items() if f not in near}
    steps = {len(law.records) for law in obeyed.values()}
    if not near and len(obeyed) > FEW and len(steps) == 1:
        worst = max(obeyed.values(), key=lambda law: max(r.value for r in law.records))
        peak = max(worst.records, key=lambda r: r.value)
        laws, size = listing([words(f) for f in obeyed]), number(peak.value, 2)
        count = f"all {max(steps)} steps" if max(steps) > 1 else "the one step measured"
        text = (
            f"The training gradient obeys the laws of {laws} at {count}: "
            f"slope at most {size} of the gradient's length"
            f"{floor_words(replace(worst, records=(peak,)))}."
        )
        yield Finding(level="good", text=text, evidence=(replace(worst, records=(peak,)).latest(),))
        return
    for family, law in obeyed.items():
        total = len(law.records)
        text = (
            f"The training gradient obeys the {words(family)} law at {total} of "
            f"{plural(total, 'step')}: {_size(run, family, law)}."
        )
        yield Finding(level="good", text=text, evidence=(law.evidence(),))


def gradient_panels(run: Log) -> Iterator[Panel]:
    """Slopes of the training gradient along the symmetries, and what epsilon leaves of them."""
    yield from by_target(
        run,
        traces(run, "conservation/first_order"),
        Plot(last_step=run.last_step, log=True, measure="slope"),
        "conservation/first_order",
        "First-order law of the training gradient",
        "Slope of the loss along the symmetry over the gradient's length, from the gradient that "
        "the optimizer was given; near its noise floor nothing but a symmetric loss shapes it.",
    )
    yield from by_target(
        run,
        traces(run, "conservation/epsilon"),
        Plot(last_step=run.last_step, log=True, measure="unexplained slope"),
        "conservation/epsilon",
        "What epsilon leaves of the training gradient's law",
        "The same of approximate symmetries, less what the epsilon of the normalisations predicts: "
        "near its noise floor nothing else shapes the gradient along them.",
    )


TOPIC = Topic(
    question="Does the training gradient obey the laws?",
    slug="gradient",
    explanation="The gradient that the optimizer was given, along the symmetries of the loss; its "
    "charts stand beside the charges.",
    rules=(gradient_laws,),
)
