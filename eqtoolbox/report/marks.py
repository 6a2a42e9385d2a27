"""Marks: the steps that every figure shows, events of the run and spikes of its loss."""

from typing import Any

import numpy as np

from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.log import Log
from eqtoolbox.report.words import number, printable

MOST = 40  # marks of a kind; of more the gravest, or the highest
BLOCK = 1 << 15  # windows whose losses are held at a time
WINDOW = 10  # steps on either side that a spike is compared with
HIGH = 6.0  # robust standard deviations of the logarithm
TIMES = 2.0  # the median around it
BORN = 0.05  # share of the run, at its start, in which the loss moves by itself


def marks(run: Log) -> list[dict[str, Any]]:
    """Steps to mark, by step: {"step", "kind": "event" or "spike", "text"}.

    What is told of the first or the last step, such as what could not be read, marks none.
    """
    gravity = {"error": 0, "warning": 1}
    told = [e for e in run.events if type(e.get("step")) is int and 0 < e["step"] < run.last_step]
    told = sorted(told, key=lambda e: gravity.get(str(e.get("kind")), 2))[:MOST]
    found = [
        {"step": e["step"], "kind": "event", "text": printable(text.split("\n")[0])}
        for e, text in ((e, str(e.get("message", ""))) for e in told)
    ]
    return sorted([*found, *spikes(run)], key=lambda mark: mark["step"])


def spikes(run: Log) -> list[dict[str, Any]]:
    """Losses far above those around them, each with the size of its spike.

    A spike is beyond six robust standard deviations of the logarithm of the losses within ten
    steps, twice their median, and the highest of its neighbours.
    """
    steps, values = Signs(run).losses
    usable = np.isfinite(values) & (values > 0)
    steps, logs = steps[usable], np.log(values[usable])
    if len(logs) < 2 * WINDOW + 1:
        return []
    around = np.lib.stride_tricks.sliding_window_view(logs, 2 * WINDOW + 1)
    here = logs[WINDOW:-WINDOW]
    above, high = np.zeros(len(here)), np.zeros(len(here), bool)
    for i in range(0, len(here), BLOCK):
        near, block = around[i : i + BLOCK], slice(i, i + BLOCK)
        middle = np.median(near, axis=1)
        sigma = 1.4826 * np.median(np.abs(near - middle[:, None]), axis=1)
        above[block] = here[block] - middle
        high[block] = (above[block] > HIGH * sigma) & (here[block] == near.max(axis=1))
    high &= above > np.log(TIMES)
    high[: max(0, int(BORN * len(logs)) - WINDOW)] = False
    at = np.flatnonzero(high)
    at = np.sort(at[np.argsort(-above[at])][:MOST])
    found = []
    for i in at.tolist():
        loss, times = (number(float(np.exp(x[i])), 2) for x in (here, above))
        text = f"The loss is {loss}, {times}x the median of its {2 * WINDOW} neighbours."
        found.append({"step": int(steps[i + WINDOW]), "kind": "spike", "text": text})
    return found
