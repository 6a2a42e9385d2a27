"""Enforced against plain in words, as a table and as a figure: what it buys, what it costs."""

import math
from collections.abc import Iterator, Mapping

from eqtoolbox.command.demo.contest import Bought, Point, Price
from eqtoolbox.command.demo.training import Outcome
from eqtoolbox.demos.demo import Contest, Demo
from eqtoolbox.record.record import Record
from eqtoolbox.report.contrasts import Table, table
from eqtoolbox.report.drawing import DASHES, PALETTE
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.sections import Section
from eqtoolbox.report.trace import Curve
from eqtoolbox.report.words import listing, number, percent, symmetry

CERTAIN = 2.0  # standard errors from which a difference is one


def findings(
    demo: Demo, asked: Contest, outcomes: Mapping[str, Outcome], bought: Bought
) -> Iterator[Finding]:
    """Three sentences: the score, the score from fewer samples, the cost."""
    name, enforced, plain = demo.score.name, asked.enforced, asked.plain
    ends = [
        Point(samples=0, score=o.score, stderr=o.stderr)
        for o in map(outcomes.get, (enforced, plain))
        if o
    ]
    said = {1: f"{enforced} is better", -1: f"{enforced} is worse", 0: "no difference is certain"}
    text = (
        f"Enforced against plain, test {name}: {enforced} {_score(ends[0])}, "
        f"{plain} {_score(ends[1])}; {said[_sign(demo, *ends)]}."
    )
    yield Finding(level="note", text=text)
    ours, theirs = bought.curves[enforced], bought.curves[plain]
    sizes = listing([f"{p.samples:,}" for p in ours])
    text = f"From {sizes} training samples ({bought.steps} steps, {bought.seeds} trainings each) "
    text += "; ".join(f"{e} {listing(list(map(_score, ps)))}" for e, ps in bought.curves.items())
    yield Finding(level="note", text=f"{text}: {_efficiency(demo, asked, ours, theirs)}.")
    yield Finding(level="note", text=f"{enforced.capitalize()} costs {_cost(bought.price)}.")


def _efficiency(demo: Demo, asked: Contest, ours: list[Point], theirs: list[Point]) -> str:
    """The fewest samples from which the enforced network beats the plain one of all samples."""
    whole = theirs[-1]
    enough = [p for p in ours[:-1] if _sign(demo, p, whole) > 0]
    if enough:
        few, many = enough[0].samples, whole.samples
        return f"{asked.enforced} from {few:,} beats {asked.plain} from {many:,}"
    signs = [_sign(demo, a, b) for a, b in zip(ours, theirs, strict=True)]
    words = {1: "better from", -1: "worse from", 0: "not to be told apart from"}
    told = []
    for sign, word in words.items():
        some = [f"{p.samples:,}" for p, s in zip(ours, signs, strict=True) if s == sign]
        if some:
            told.append(
                f"{word} {listing(some)}" if sign else f"{word} {asked.plain} at {listing(some)}"
            )
    return f"{asked.enforced} is {', '.join(told)}"


def _cost(price: Price) -> str:
    step, answer = number(price.step, 2), number(price.answer, 2)
    times = f"{step} times the time of a training step and {answer} times that of an answer"
    if not price.forwards:
        return f"{times}; it is another network"
    return f"{number(price.forwards, 3)} forwards of the plain network an answer, {times}"


def _sign(demo: Demo, a: Point, b: Point) -> int:
    """1 where a is better than b beyond errors, -1 where it is worse, else 0."""
    gain = (a.score - b.score) * (1 if demo.score.rising else -1)
    return 0 if abs(gain) <= CERTAIN * math.hypot(a.stderr, b.stderr) else 1 if gain > 0 else -1


def _score(point: Point) -> str:
    return f"{percent(point.score)} ± {percent(point.stderr)}"


def section(demo: Demo, asked: Contest, outcomes: Mapping[str, Outcome], bought: Bought) -> Section:
    """The question with its two tables and the curve over training samples."""
    return Section(
        question="What does enforcing the symmetry buy, and what does it cost?",
        slug="enforced",
        explanation=f"{asked.enforced.capitalize()} against {asked.plain}: the trainings above, "
        f"then {bought.seeds} each of {bought.steps} steps on fewer samples, without the monitor. "
        "Errors are standard errors over test samples and trainings; times are ratios of "
        "processor time on one core, and no finer than a tenth.",
        panels=(_panel(demo, bought),),
        tables=(_ends(demo, asked, outcomes, bought), _fewer(demo, bought)),
    )


def _ends(demo: Demo, asked: Contest, outcomes: Mapping[str, Outcome], bought: Bought) -> Table:
    names = list(outcomes[asked.plain].errors)
    heads = [f"error under {symmetry(n)}" for n in names]
    columns = [
        "",
        demo.score.name,
        *heads,
        "parameters",
        "forwards",
        "time of a step",
        "of an answer",
    ]
    price = bought.price
    costs = {asked.plain: Price(forwards=1, step=1, answer=1), asked.enforced: price}
    rows = []
    for entry, cost in costs.items():
        o = outcomes[entry]
        errors = [
            f"{number(o.errors[n].value, 2)} ({o.errors[n].verdict or o.errors[n].status})"
            for n in names
        ]
        score = f"{percent(o.score)} ± {percent(o.stderr)}"
        forwards = number(cost.forwards) if cost.forwards else "another network"
        rows.append([
            entry, score, *errors, f"{o.parameters:,}", forwards,
            f"× {number(cost.step, 2)}", f"× {number(cost.answer, 2)}",
        ])  # fmt: skip
    return table("Enforced against plain", columns, rows, numbers=True)


def _fewer(demo: Demo, bought: Bought) -> Table:
    rows = [
        [f"{same[0].samples:,}", *map(_score, same)]
        for same in zip(*bought.curves.values(), strict=True)
    ]
    title = f"{demo.score.name[:1].upper()}{demo.score.name[1:]} by training samples"
    return table(title, ["training samples", *bought.curves], rows, numbers=True)


def _panel(demo: Demo, bought: Bought) -> Panel:
    """One line an entry over training samples, with the band of its errors."""
    sizes = [p.samples for p in next(iter(bought.curves.values()))]
    plot = Plot(last_step=sizes[-1], scale=100.0, suffix=" %", measure=f"test {demo.score.name}")
    for i, (entry, points) in enumerate(bought.curves.items()):
        rows = tuple(
            Record(step=p.samples, name=f"score/{entry}", value=p.score, stderr=p.stderr)
            for p in points
        )
        last = points[-1].score
        plot.line(Curve(records=rows), entry, PALETTE[i], dash=DASHES[i], value=last)
    better = "higher" if demo.score.rising else "lower"
    panel = plot.panel(
        "data-efficiency", "Learned from fewer samples",
        f"Test {demo.score.name} over the number of training samples, {better} is better; bands "
        "are standard errors.",
    )  # fmt: skip
    panel.figure["layout"]["xaxis"] |= {"title": {"text": "training samples"}}
    return panel
