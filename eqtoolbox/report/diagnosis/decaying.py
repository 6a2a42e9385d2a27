"""Symptoms of weight decay: too much of it, or none where the weights' norm is idle."""

import numpy as np

from eqtoolbox.report.diagnosis.disease import Symptom
from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.diagnosis.steps import RESTS
from eqtoolbox.report.finding import Level
from eqtoolbox.report.words import number, percent

SHRUNK = 0.7  # of the weights' norm at the start
FORGETS = 5e-3  # of the weights that decay takes a step: usual recipes take 1e-5 to 1e-3
GROWN, MUCH = 2.0, 30.0  # times |w|² at the start


def decay_too_strong(signs: Signs) -> Symptom | None:
    """Weights that decay faster than the gradient can hold them."""
    decay, share = signs.option("weight_decay"), signs.now("vital/weight_decay")
    size = signs.told("vital/weight_decay", "weight")
    size = size[np.isfinite(size)]
    if decay <= 0 or share is None or size.size < 2 or signs.state == "not finite":
        return None
    rate = signs.option("lr") / (1 - min(signs.option("momentum"), 0.999))
    names = ("vital/weight_decay", "vital/update_ratio")
    if signs.state == "learned":
        return _forgetful(signs, decay * rate, names)
    kept = float(np.median(size[-5:]) / size[0])
    if kept > SHRUNK or decay * rate * signs.length < 1 - SHRUNK:
        return None
    text = (
        f"Weight decay is too strong: it shrank the weights to {percent(kept)} of their first "
        f"norm, and the loss {signs.course} ({number(signs.level[1])} at the end)."
    )
    return Symptom(text=text, names=names)


def _forgetful(signs: Signs, taken: float, names: tuple[str, ...]) -> Symptom | None:
    """Decay that lets a run learn, but no further than its few last steps can."""
    rest = signs.level[1]
    if taken < FORGETS or taken * signs.length < 1 or rest < RESTS * signs.best_idle:
        return None
    text = (
        f"Weight decay is strong: lr times weight_decay is {number(taken, 2)} a step, so that the "
        f"weights remember {number(1 / taken, 2)} steps only, and the loss rests at {number(rest)}."
    )
    return Symptom(text=text, names=names, level="note")


def norms_grow(signs: Signs) -> Symptom | None:
    """Scale-symmetric weights that grow without decay: their effective rate falls."""
    if signs.option("weight_decay") > 0:
        return None
    size = signs.curve("conservation/charge/scale")  # mean of |w|²
    if size is None or size.records[0].value <= 0 or len(size.records) < 3:
        return None
    growth = size.last.value / size.records[0].value
    if growth < GROWN:
        return None
    text = (
        f"Without weight decay the weights before normalisations grow: their effective learning "
        f"rate lr/|w|² fell {number(growth, 2)}x since the start."
    )
    much = growth > MUCH and signs.state != "learned"
    level: Level | None = "warning" if much else None
    return Symptom(text=text, names=(size.name,), level=level)
