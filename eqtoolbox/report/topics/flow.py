"""Do charges move as theory says: budgets, equilibria and the closed forms of SGD."""

from collections.abc import Iterator
from dataclasses import replace

from eqtoolbox.record.record import Record
from eqtoolbox.report.drawing import PALETTE
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics.charges import drifts, law_undecided, moved
from eqtoolbox.report.trace import Curve, floor_words, trace, traces
from eqtoolbox.report.words import listing, number, percent, words

NEAR = 0.03  # of an equilibrium norm: |w|^4 is then within about 10 %
CLOSE = 0.01  # of the predicted drift
NEARLY = 0.1  # the same where epsilon moves charges too, of which closed forms know nothing
LITTLE = 1e-4  # drift below which a prediction is not worth a word
MOVES = 0.01  # share of the drift from which the gradient is said to move charges
STEADY = 0.05  # of the equilibrium's angular update


def budget_closure(run: Log) -> Iterator[Finding]:
    """Budgets of charges that do not close: something else moved the parameters."""
    for family, gap in traces(run, "conservation/closure").items():
        if gap.verdict == "violated":
            text = (
                f"The budget of the {family} charges does not close ({number(gap.now, 2)}"
                f"{floor_words(gap)}): something beside the optimizer step moves the parameters."
            )
            yield Finding(level="warning", text=text, evidence=(gap.evidence(),))


def equilibrium(run: Log) -> Iterator[Finding]:
    """How far the norm of scale-symmetric weights is from where decay and gradient balance."""
    for family, ratio in traces(run, "conservation/equilibrium").items():
        steps = trace(run, f"conservation/equilibrium_steps/{family}")
        rate = trace(run, f"conservation/effective_lr/{family}")
        if steps is None or rate is None:
            continue
        near = abs(ratio.now - 1) <= NEAR
        state = "at" if near else f"{number(ratio.now, 2)}x"
        left = "" if near else f", about {number(steps.now, 2)} steps away"
        text = (
            f"The norms of {family}-symmetric weights are {state} their equilibrium of decay and "
            f"gradient{left}; their effective learning rate lr/|w|^2 is {number(rate.now, 2)}."
        )
        yield Finding(level="note", text=text, evidence=(ratio.evidence(), steps.evidence()))


def turning(run: Log) -> Iterator[Finding]:
    """How far a step turns scale-symmetric weights, over what it would at their equilibrium."""
    for family, angle in traces(run, "conservation/angular_update").items():
        rest = trace(run, f"conservation/equilibrium_angle/{family}")
        if rest is None or rest.last.value <= 0:
            continue
        ratio = angle.now / rest.last.value
        near = abs(ratio - 1) <= STEADY
        state = "its equilibrium value" if near else f"{number(ratio, 2)}x its equilibrium value"
        text = (
            f"The angular update of {family}-symmetric weights, {number(angle.now, 2)} rad a step, "
            f"is {state} sqrt(2 lr decay / (1 + momentum)) = {number(rest.last.value, 2)}."
        )
        yield Finding(level="note", text=text, evidence=(angle.evidence(), rest.latest()))


def forecasts(run: Log) -> Iterator[Finding]:
    """Whether charges moved as SGD with decay and momentum moves conserved ones."""
    followed: dict[str, tuple[Curve, Curve]] = {}
    for family, expected in traces(run, "conservation/forecast").items():
        error = trace(run, f"conservation/forecast_error/{family}")
        if error is None or error.last.step != expected.last.step:
            continue
        size, off = expected.last.value, error.last.value
        allowed = NEARLY if expected.last.facts.flag("approximate") else CLOSE
        if off <= max(3 * (error.last.floor or 0.0), allowed * size):
            if size >= LITTLE:
                followed[family] = expected, error
            continue
        text = (
            f"{words(family).capitalize()} charges left the closed form of SGD: predicted drift "
            f"{percent(size)}, off by {percent(off)}{_moved(expected.last)}; "
            f"{_mover(run, family)}."
        )
        yield Finding(level="note", text=text, evidence=(expected.latest(), error.latest()))
    if followed:
        each = [f"{words(f)} {percent(e.last.value)}" for f, (e, _) in followed.items()]
        worst = max(x.last.value / e.last.value for e, x in followed.values())
        text = (
            f"Charges drift as the closed form of SGD with its decay and momentum predicts, to "
            f"{percent(worst)} of the drift: {listing(each)}."
        )
        evidence = tuple(t.latest() for pair in followed.values() for t in pair)
        yield Finding(level="good", text=text, evidence=evidence)


def _moved(row: Record) -> str:
    """What a closed form stands beside, in parentheses."""
    moved, since = row.facts.number("measured"), row.facts.count("since")
    near = "approximate symmetry, which epsilon moves too" if row.facts.flag("approximate") else ""
    said = "" if moved is None else f"measured {moved:.3e} since step {since}"
    both = "; ".join(filter(None, (said, near)))
    return f" ({both})" if both else ""


def _mover(run: Log, family: str) -> str:
    """What else than a conserving SGD step moved the charges, in words."""
    share = trace(run, f"conservation/share_symmetry/{family}")
    if share is not None and abs(share.last.value) > MOVES:
        if law_undecided(run, family):
            return "the gradient moves them, no more than the epsilon of normalisations may leave"
        return "the gradient moves them, which it does not while the symmetry holds"
    return "something that is no step of SGD moves them"


def forecast_panel(run: Log) -> Iterator[Panel]:
    """Measured drifts as broad pale lines, those of the closed form as thin ones."""
    found = drifts(run)
    plot = Plot(last_step=run.last_step, log=True, scale=100.0, suffix=" %", measure="drift")
    for i, (family, expected) in enumerate(traces(run, "conservation/forecast").items()):
        if family not in found:
            continue
        colour = PALETTE[i % len(PALETTE)]
        drift = moved(found[family])
        plot.line(
            drift,
            f"{words(family)}, measured",
            colour,
            width=6,
            dash="solid",
            value=drift.last.value,
        )
        plot.data[-1] |= {"opacity": 0.35, "mode": "lines"}
        key = replace(plot.keys.pop(), label=words(family))
        plot.line(moved(expected), f"{words(family)}, predicted", colour, width=1.4, dash="solid")
        plot.keys.append(replace(key, traces=key.traces + plot.keys.pop().traces))
    if plot.data:
        reading = (
            "Drift of the charges since the start: broad pale lines are measured, thin lines are "
            "what SGD with its decay and momentum does to charges that the loss conserves."
        )
        yield plot.panel("forecast", "Drift by the closed form of SGD", reading)


TOPIC = Topic(
    question="Do charges move as theory says?",
    slug="flow",
    explanation="What decay, momentum and finite steps do to conserved charges, in closed form; "
    "its chart stands beside the charges.",
    remedy=("look for code that writes into parameters beside optimizer.step(): clamps, resets",),
    rules=(budget_closure, equilibrium, turning, forecasts),
)
