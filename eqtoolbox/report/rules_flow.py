"""Rules about closed forms: charges and angular updates beside what theory predicts of them."""

from collections.abc import Iterator

from eqtoolbox.report.finding import Finding
from eqtoolbox.report.log import Log
from eqtoolbox.report.rules_conservation import law_undecided
from eqtoolbox.report.trace import Trace, trace, traces
from eqtoolbox.report.words import listing, number, percent, words

CLOSE = 0.01  # of the predicted drift
NEARLY = 0.1  # the same where epsilon moves charges too, of which closed forms know nothing
LITTLE = 1e-4  # drift below which a prediction is not worth a word
MOVES = 0.01  # share of the drift from which the gradient is said to move charges
STEADY = 0.05  # of the equilibrium's angular update


def forecasts(run: Log) -> Iterator[Finding]:
    """Whether charges moved as SGD with decay and momentum moves conserved ones."""
    followed: dict[str, tuple[Trace, Trace]] = {}
    for family, expected in traces(run, "conservation/forecast").items():
        error = trace(run, f"conservation/forecast_error/{family}")
        if error is None or error.last.step != expected.last.step:
            continue
        size, off = expected.last.value, error.last.value
        allowed = NEARLY if "approximate" in expected.last.note else CLOSE
        if off <= max(3 * (error.last.floor or 0.0), allowed * size):
            if size >= LITTLE:
                followed[family] = expected, error
            continue
        text = (
            f"{words(family).capitalize()} charges left the closed form of SGD: predicted drift "
            f"{percent(size)}, off by {percent(off)} ({expected.last.note}); {_mover(run, family)}."
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


def _mover(run: Log, family: str) -> str:
    """What else than a conserving SGD step moved the charges, in words."""
    share = trace(run, f"conservation/share_symmetry/{family}")
    if share is not None and abs(share.last.value) > MOVES:
        if law_undecided(run, family):
            return "the gradient moves them, no more than the epsilon of normalisations may leave"
        return "the gradient moves them, which it does not while the symmetry holds"
    return "something that is no step of SGD moves them"


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
