"""Enforced against plain in words, as a table and as a figure: what it buys, what it costs."""

import math
from collections.abc import Iterator, Mapping

from eqtoolbox.command.demo.contest import Bought, Paid, Reached
from eqtoolbox.command.demo.training import Outcome
from eqtoolbox.demos.demo import Contest, Demo
from eqtoolbox.record.record import Record
from eqtoolbox.report.contrasts import Table, table
from eqtoolbox.report.drawing import DASHES, PALETTE
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import Finding
from eqtoolbox.report.sections import Section
from eqtoolbox.report.trace import Curve
from eqtoolbox.report.words import listing, number, percent, plural, symmetry

CERTAIN = 2.0  # standard errors from which a difference is one


def findings(
    demo: Demo, asked: Contest, outcomes: Mapping[str, Outcome], bought: Bought
) -> Iterator[Finding]:
    """Of each enforced network two sentences: its score and its cost, then scores from fewer."""
    name, plain, theirs = demo.score.name, asked.plain, bought.curves[asked.plain]
    sizes = listing([f"{p.samples:,}" for p in theirs])
    trainings = f"{bought.steps} steps, {plural(bought.seeds, 'training')} of each"
    for enforced in asked.enforced:
        text = f"Enforced against plain, test {name}: {_ranked(demo, asked, enforced, outcomes)}"
        cost = _cost(bought.prices[enforced])
        yield Finding(level="note", text=f"{text}. It costs {cost}.")
        ours = bought.curves[enforced]
        text = f"From {sizes} training samples ({trainings}) {enforced} reaches {_scores(ours)}, "
        text += f"{plain} {_scores(theirs)}: {_efficiency(demo, plain, ours, theirs)}"
        yield Finding(level="note", text=f"{text}.")


def _efficiency(demo: Demo, plain: str, ours: list[Reached], theirs: list[Reached]) -> str:
    """The fewest samples from which the enforced network beats the plain one of all samples."""
    enough = [p for p in ours[:-1] if _sign(demo, p, theirs[-1]) > 0]
    if enough:
        return f"{enough[0].samples:,} do more for it than {theirs[-1].samples:,} for {plain}"
    signs = [_sign(demo, a, b) for a, b in zip(ours, theirs, strict=True)]
    told = []
    for sign, word in {1: "better", -1: "worse", 0: "not to be told apart"}.items():
        some = [f"{p.samples:,}" for p, s in zip(ours, signs, strict=True) if s == sign]
        if some:
            told.append(f"{word} from {listing(some)}")
    return ", ".join(told)


def _ranked(demo: Demo, asked: Contest, enforced: str, outcomes: Mapping[str, Outcome]) -> str:
    """The enforced network beside the plain one, and beside one that saw moved samples."""
    words = {1: "better than", -1: "worse than", 0: "not to be told apart from"}
    own = _end(outcomes[enforced])
    others = [e for e in (asked.plain, "augmented") if e in outcomes]
    signs = {e: _sign(demo, own, _end(outcomes[e])) for e in others}
    said = [f"{words[signs[e]]} {e} ({_score(_end(outcomes[e]))})" for e in others]
    return f"{enforced} ({_score(own)}) is {listing(said)}"


def _end(outcome: Outcome) -> Reached:
    return Reached(samples=0, score=outcome.score, stderr=outcome.stderr)


def _cost(price: Paid) -> str:
    step, answer = number(price.step, 2), number(price.answer, 2)
    times = f"{step} times the time of a training step and {answer} times that of an answer"
    if not price.forwards:
        return f"{times}, and is another network"
    return f"{_forwards(price)} an answer, {times}"


def _forwards(price: Paid) -> str:
    scores = f" and {price.scores} scores" if price.scores else ""
    return f"{number(price.forwards)} forward{'s' if price.forwards != 1 else ''}{scores}"


def _sign(demo: Demo, a: Reached, b: Reached) -> int:
    """1 where a is better than b beyond errors, -1 where it is worse, else 0."""
    gain = (a.score - b.score) * (1 if demo.score.rising else -1)
    return 0 if abs(gain) <= CERTAIN * math.hypot(a.stderr, b.stderr) else 1 if gain > 0 else -1


def _scores(points: list[Reached]) -> str:
    return listing([_score(p) for p in points])


def _score(point: Reached) -> str:
    return f"{percent(point.score)} ± {percent(point.stderr)}"


def section(demo: Demo, asked: Contest, outcomes: Mapping[str, Outcome], bought: Bought) -> Section:
    """The question with its two tables and the curve over training samples."""
    return Section(
        question="What does enforcing the symmetry buy, and what does it cost?",
        slug="enforced",
        explanation=f"{listing(list(asked.enforced)).capitalize()} against {asked.plain}: first as "
        f"trained above, then by {plural(bought.seeds, 'training')} of {bought.steps} steps for "
        "each number of samples, without the monitor. Errors are standard errors over test samples "
        "and trainings; times are ratios of processor time on one core, no finer than a tenth.",
        panels=(_panel(demo, bought), *demo.drawn({e: o.network for e, o in outcomes.items()})),
        tables=(_ends(demo, asked, outcomes, bought), _fewer(demo, bought)),
    )


def _ends(demo: Demo, asked: Contest, outcomes: Mapping[str, Outcome], bought: Bought) -> Table:
    names = list(outcomes[asked.plain].errors)
    heads = [f"error under {symmetry(n)}" for n in names]
    costs = ["parameters", "an answer", "step time", "answer time"]
    prices = {asked.plain: Paid(forwards=1, scores=0, step=1, answer=1)} | bought.prices
    rows = []
    for entry, cost in prices.items():
        o = outcomes[entry]
        errors = [
            f"{number(r.value, 2)} {r.verdict or r.status}" for r in map(o.errors.get, names) if r
        ]
        rows.append([
            entry, _score(_end(o)), *errors, f"{o.parameters:,}",
            _forwards(cost) if cost.forwards else "another network",
            f"× {number(cost.step, 2)}", f"× {number(cost.answer, 2)}",
        ])  # fmt: skip
    columns = ["", demo.score.name, *heads, *costs]
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
    for entry, points in bought.curves.items():
        i = list(demo.entries).index(entry)  # as in the other figures
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
    room = 0.02 * math.log10(sizes[-1] / sizes[0])
    panel.figure["layout"]["xaxis"] = {
        "title": {"text": "training samples"}, "type": "log",
        "tickvals": sizes, "ticktext": [f"{n:,}" for n in sizes],
        "range": [math.log10(sizes[0]) - room, math.log10(sizes[-1]) + room],
    }  # fmt: skip
    return panel
