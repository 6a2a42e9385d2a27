"""Symptoms of the steps: too long, too short, clipped, pulled by momentum or by decay."""

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.report.diagnosis.disease import Symptom
from eqtoolbox.report.diagnosis.leap import FAR, leap
from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.finding import Level
from eqtoolbox.report.words import number, percent

OFTEN = 0.4  # share of steps that raise the loss of their own batch: noise alone raises few
RISES = 1e-3  # of the loss, from which a rise counts
NOTHING = 0.05  # of the weights: so much at most they move in the whole run
HARDLY = 0.02  # of the loss: so much at most all steps together lower it
ENDED = 1e-3  # of its largest: what a schedule leaves of a learning rate that is at its end
CLIPPED = 0.5  # of the gradient that is left
ALWAYS = 0.8  # share of steps
ROUNDED = 1e-3  # relative, up to which multiples of a gradient are one
HEAVY = 0.95  # momentum beyond which its memory may be longer than the run allows
MEMORY = 0.05  # of the run: how long momentum may remember
SHRUNK = 0.7  # of the weights' norm at the start
FORGETS = 5e-3  # of the weights that decay takes a step: usual recipes take 1e-5 to 1e-3
RESTS = 0.2  # of the loss of a model that learned nothing: what is left above it is much
GROWN, MUCH = 2.0, 30.0  # times |w|² at the start
THROWN = 5.0  # times the weights' norm at the start, in a run that learns nothing
EDGE = 2.0  # times the edge of stability


def rises(signs: Signs) -> float:
    """Share of the measured steps that raised the loss of their own batch."""
    change = signs.curve("vital/own_batch")
    if change is None or len(change.records) < 3:
        return 0.0
    size = np.array([abs(row.facts.number("loss") or 0.0) for row in change.records])
    size = np.maximum(size, abs(signs.level[0]))  # where it is small, rises are small
    return float(np.mean(change.values > RISES * size))


def thrown_up(signs: Signs) -> float | None:
    """The largest loss of the run, where it is far above its start."""
    values = signs.losses[1][np.isfinite(signs.losses[1])]
    start = signs.level[0]
    far = values.size and float(values.max()) - start > (FAR - 1) * usual(signs)
    return float(values.max()) if far else None


def usual(signs: Signs) -> float:
    """The size of the first losses; of both signs the largest, as most are small by chance."""
    values = signs.losses[1][np.isfinite(signs.losses[1])]
    first = values[: max(1, len(values) // 5)]
    if first.size and first.min() < 0 < first.max():
        return float(np.abs(first).max())
    return abs(signs.level[0])


def rate_too_high(signs: Signs) -> Symptom | None:
    """Steps that overshoot: they raise the loss of their own batch, or throw the weights far.

    A loss that is far above its start alone is no sign: batches may differ by as much.
    """
    share, stability = rises(signs), signs.now("curvature/stability")
    if signs.state not in ("stuck", "grew", "little") or (share < OFTEN / 2 and leap(signs)):
        return None
    beyond = stability is not None and stability > EDGE
    size = signs.told("vital/weight_decay", "weight")
    thrown = size.size > 1 and size[-1] > THROWN * size[0]
    top = thrown_up(signs) if share > OFTEN / 2 else None
    far = thrown or top is not None
    if share < OFTEN and not (beyond and share > OFTEN / 2) and not far:
        return None
    raised = f"{percent(share)} of the measured steps raise the loss of their own batch"
    if top is not None:
        raised = f"it threw the loss up to {number(top)}"
    if thrown:
        raised = f"it threw the weights to {number(size[-1] / size[0], 2)}x their first norm"
    text = (
        f"The learning rate is too high: {raised}, and the loss {signs.course} "
        f"({number(signs.level[0])} at the start, {number(signs.level[1])} at the end)."
    )
    names = ("vital/own_batch", "vital/update_ratio", "curvature/stability")
    return Symptom(text=text, names=names, level="alarm" if far else None)


def momentum_too_high(signs: Signs) -> Symptom | None:
    """Momentum that remembers a large part of the run, and a loss that swings."""
    beta = signs.option("momentum")
    if beta < HEAVY or 1 / (1 - min(beta, 1 - 1e-9)) < MEMORY * signs.length:
        return None
    if signs.state == "learned":
        return None
    text = (
        f"Momentum {number(beta)} is too high: it remembers {number(1 / (1 - beta))} steps of "
        f"{signs.length}, and the loss swings or grows instead of falling."
    )
    return Symptom(text=text, names=("vital/own_batch", "vital/update_ratio"))


def rate_too_low(signs: Signs) -> Symptom | None:
    """Weights that hardly move, although gradients arrive."""
    ratio = signs.curve("vital/update_ratio")
    if signs.state not in ("stuck", "little") or ratio is None or clipped_share(signs) > ALWAYS:
        return None
    names = ("vital/update_ratio", "vital/own_batch", "vital/gradient_norm")
    rate = signs.curve("training/learning_rate")
    if rate is not None and not rate.values.any():
        text = "The learning rate is 0 at all measured steps: nothing is trained."
        remedy = ("set the optimizer's lr", "look at what a schedule or a warm-up makes of it")
        return Symptom(text=text, names=("training/learning_rate",), remedy=remedy)
    most = signs.told("vital/update_ratio", "most")
    most = most[np.isfinite(most)]
    reach = (float(np.mean(most)) if most.size else ratio.now) * signs.length
    falls = signs.curve("vital/own_batch")
    fall = 1.0
    if falls is not None and signs.level[0]:
        fall = -float(np.median(falls.values)) * signs.length / abs(signs.level[0])
    if reach > NOTHING and not (0 <= fall < HARDLY and reach < 10 * NOTHING):
        return None
    text = (
        f"The learning rate is too low: the weights hardly move, by {number(ratio.now, 2)} of "
        f"their size a step, at most {percent(reach)} in the whole run, and the loss "
        f"{signs.course}."
    )
    return Symptom(text=text, names=names)


def schedule_ended(signs: Signs) -> Symptom | None:
    """A schedule that has brought the learning rate to nearly 0 before half of the run."""
    rate = signs.curve("training/learning_rate")
    if signs.state not in ("stuck", "little", "grew") or rate is None or not rate.values.any():
        return None
    began = _since(rate.values < ENDED * rate.values.max())
    if began is None or rate.steps[began] > signs.length / 2:
        return None
    step = int(rate.steps[began])
    text = (
        f"The schedule brought the learning rate from {number(rate.values.max())} to "
        f"{number(rate.values[began])} at step {step} of {signs.length}, and to "
        f"{number(rate.values[-1])} at the end: hardly anything is learned after that "
        f"({number(signs.level[1])} at the end). Is it stepped per batch instead of per epoch?"
    )
    names = ("training/learning_rate", "vital/update_ratio")
    return Symptom(text=text, names=names, where="the schedule", step=step)


def zero_gradient(signs: Signs) -> Symptom | None:
    """Gradients that are exactly 0, of a loss that is not."""
    norm = signs.curve("vital/gradient_norm")
    if signs.state not in ("stuck", "little", "grew") or norm is None or len(norm.records) < 3:
        return None
    began = _since(norm.values == 0)
    if began is None or began > len(norm.values) // 2 or not signs.level[1]:
        return None
    step = int(norm.steps[began])
    text = (
        f"The gradient is exactly 0 since step {step}, and the loss is not "
        f"({number(signs.level[1])}): it is lost to rounding, as by underflow in half precision, "
        "or what the loss reads of the model has no slope, as behind round or argmax."
    )
    return Symptom(text=text, names=("vital/gradient_norm", "vital/update_ratio"), step=step)


def _since(flags: NDArray[np.bool_]) -> int | None:
    """Where that began which holds from there to the end; None where it does not at the end."""
    false = np.flatnonzero(~flags)
    began = int(false[-1]) + 1 if false.size else 0
    return began if began < len(flags) else None


def clipped_share(signs: Signs) -> float:
    """Share of the measured steps whose gradient was cut to less than `CLIPPED`.

    One that is the same multiple at every step though its norm is not was divided, not clipped.
    """
    ratio, cosine = (signs.curve(f"monitor/closure_grad_{n}") for n in ("ratio", "cos"))
    if ratio is None or cosine is None or len(ratio.records) < 3 or cosine.now < 0.9:
        return 0.0
    norm = signs.curve("vital/gradient_norm")
    varies = norm is not None and np.ptp(norm.values) > np.median(norm.values) / 10
    if varies and np.ptp(ratio.values) < ROUNDED * ratio.now:
        return 0.0
    return float(np.mean(ratio.values < CLIPPED))


def always_clipped(signs: Signs) -> Symptom | None:
    """Clipping that acts at nearly every step is a smaller learning rate."""
    share = clipped_share(signs)
    left = signs.now("monitor/closure_grad_ratio")
    if share < ALWAYS or left is None:
        return None
    mild = signs.state == "learned" and left > CLIPPED / 10
    text = (
        f"The gradient is clipped at {percent(share)} of the measured steps, to {percent(left)} of "
        "its length: the threshold, not the learning rate, sets the length of the steps."
    )
    names = ("monitor/closure_grad_ratio", "vital/gradient_norm")
    return Symptom(text=text, names=names, level="note" if mild else None)


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
