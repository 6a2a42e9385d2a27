"""Hopes that did not come true, each beside what the benchmarks found."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from evidence_cells import correlation, number, results, table

DECAYS = (0.003, 0.01, 0.03, 0.05)
FASTEST = "steps at the fastest rate"
LOST = 2.0  # a loss near that of ten classes by chance, or above it


def hopes() -> str:
    """What was hoped for, what was found, and where more stands."""
    return table(("hoped", "found", "more"), [*_by_symmetry(), *_by_acts()])


def _by_symmetry() -> Iterator[Sequence[str]]:
    told = []
    for name, data in results("link")["data"].items():
        steps = ", ".join(
            f"{level} {number(statistics.fmean(data['levels'][level][FASTEST]))}"
            for level in ("plain", "all turned", "tied", "tied, equal weights")
        )
        link = correlation(data["links"]["all runs"][FASTEST])
        told.append(f"{name}: {steps}; correlation of error and steps {link}")
    yield (
        "equivariant networks are faster to fit",
        "not as a rule. Mean steps, each at its fastest rate, on data " + ". ".join(told),
        "above",
    )
    digits = results("enforced")["digits"]
    after, plain = (digits[name]["turned"] for name in ("averaged after training", "plain"))
    yield (
        "averaging a network that is trained already makes it equivariant and as good",
        f"exact, but test accuracy on turned digits {number(after)}, plain {number(plain)}; "
        f"averaged while it trains {number(digits['averaged']['turned'])}",
        "[enforce](howto/enforce.md#the-group-average)",
    )
    yield _penalised()


def _penalised() -> Sequence[str]:
    """Accuracy on turned digits by weight, and when the alarm of collapse came."""
    rows = [r for r in results("penalty") if r["task"] == "digits"]
    told = "; ".join(
        f"weight {row['weight']:g}: {number(statistics.fmean(row['turned']))}"
        + (f", collapsed, alarm at step {steps}" if (steps := _alarms(row)) else "")
        for row in rows
    )
    return (
        "a penalty makes a classifier equivariant",
        f"it collapses to a constant before it is. Test accuracy on turned digits, {told}",
        "[penalty](howto/enforce.md#a-penalty)",
    )


def _alarms(row: dict[str, Any]) -> str:
    return ", ".join(str(step) for step in row["alarm"] if step is not None)


def _by_acts() -> Iterator[Sequence[str]]:
    rows = results("reproduce")["rows"]
    move = rows["teleportation"]["figures"]
    none, one, five = (_median(v) for key, v in move.items() if key.startswith("gradients"))
    yield (
        "teleporting to a larger gradient saves time",
        f"gradients to the same loss at the best rate: {none} without, {one} with one, {five} with "
        "five; it buys what a larger rate buys",
        "[move](howto/act.md#move)",
    )
    yield (
        "balancing at every step trains better",
        rows["balance while training"]["verdict"],
        "[balance](howto/act.md#balance)",
    )
    yield ("a rate kept at the edge (CDAT) is cheaper", rows["CDAT"]["verdict"], "below")
    plain, held = (_by_decay(scale) for scale in (None, 0.1))
    told = "; ".join(
        f"decay {decay}: {number(plain[decay])} and {number(held[decay])}" for decay in DECAYS
    )
    yield (
        "decay towards a random point is better than decay to zero",
        "it mends a decay that is too large, no other. Test accuracy without and with an anchor: "
        f"{told}",
        "[anchor](howto/act.md#anchor)",
    )
    yield _guarded()


def _by_decay(scale: float | None) -> dict[float, float]:
    """Mean test accuracy of SGD by decay."""
    rows = [r for r in results("anchor") if r["optimizer"] == "SGD" and r["scale"] == scale]
    return {r["decay"]: statistics.fmean(r["test"]) for r in rows}


def _guarded() -> Sequence[str]:
    """The best training loss by clipping and by the cap, and how many of their runs are lost."""
    parts, lost = [], {"clip": [0, 0], "cap": [0, 0]}
    for kind, batch in (("relu", "full"), ("tanh", "full"), ("relu", 64), ("tanh", 64)):
        rows = [r for r in results("guard") if r["network"] == kind and r["batch"] == batch]
        best = {}
        for way, count in lost.items():
            losses = [_loss(r) for r in rows if r["way"] == way]
            best[way] = number(min(losses))
            count[0] += sum(loss > LOST for loss in losses)
            count[1] += len(losses)
        parts.append(f"{kind}, batch {batch}: {best['clip']} and {best['cap']}")
    share = {way: f"{gone} of {runs} runs" for way, (gone, runs) in lost.items()}
    return (
        "a cap at the edge of stability trains as well as clipping",
        "not where clipping has its right rate: training loss clipped and capped, "
        f"{'; '.join(parts)}. At rates of 1 to 50 the cap loses {share['cap']}, at 1 and 8 "
        f"clipping {share['clip']}",
        "[guard](howto/act.md#guard)",
    )


def _loss(row: dict[str, Any]) -> float:
    return row["loss"] if isinstance(row["loss"], float) else math.inf


def _median(values: Sequence[float | None]) -> str:
    return number(statistics.median(math.inf if v is None else v for v in values))
