"""Symptoms of the steps: too long, too short, clipped, pulled by momentum."""

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.report.diagnosis.disease import Symptom
from eqtoolbox.report.diagnosis.leap import FAR, leap
from eqtoolbox.report.diagnosis.signs import Signs
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
RESTS = 0.2  # of the loss of a model that learned nothing: what is left above it is much
THROWN = 5.0  # times the weights' norm at the start, in a run that learns nothing
LIFTS = 0.2  # of the loss of a model that learned nothing: so far one step raises its own
EDGE = 2.0  # times the edge of stability
ABOVE = 2.0  # times the best constant output's loss: outputs are not even at the targets' mean
MOVED = 3.0  # times the loss by which the steps together have lowered it, each on its own batch
BACK = 0.5  # of the loss at the end: so low it was before, in a run that swings
PARTS = 10  # of a run, whose medians tell a swing from the scatter of the batches


def rises(signs: Signs) -> float:
    """Share of the measured steps that raised the loss of their own batch."""
    change = signs.curve("vital/own_batch")
    if change is None or len(change.records) < 3:
        return 0.0
    size = np.array([abs(row.facts.number("loss") or 0.0) for row in change.records])
    size = np.maximum(size, abs(signs.level[0]))  # where it is small, rises are small
    return float(np.mean(change.values > RISES * size))


def each_step(signs: Signs) -> float:
    """What a step does to the loss of its own batch, relative to that; 0 where it is not known."""
    own, at = signs.curve("vital/own_batch"), np.abs(signs.told("vital/own_batch", "loss"))
    if own is None or not np.nanmax(at, initial=0.0) > 0:
        return 0.0
    size = float(np.nanmedian(at))
    return float(np.median(own.values)) / size if size > 0 else 0.0


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

    A loss that is far above its start alone is no sign: batches may differ by as much. Weights that
    grow alone are none, either: outputs may have far to go.
    """
    share, stability = rises(signs), signs.now("curvature/stability")
    if signs.state == "learned":
        return _rests_thrown(signs)
    if signs.state not in ("stuck", "grew", "little") or (share < OFTEN / 2 and leap(signs)):
        return None
    beyond = stability is not None and stability > EDGE
    size = signs.told("vital/weight_decay", "weight")
    thrown = size.size > 1 and size[-1] > THROWN * size[0] and (share > 0 or not _far_to_go(signs))
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


def _rests_thrown(signs: Signs) -> Symptom | None:
    """A run that learned, but rests high since a step threw its weights and its own loss up."""
    own, size = signs.curve("vital/own_batch"), signs.told("vital/weight_decay", "weight")
    idle, (_, rest) = signs.best_idle, signs.level
    if own is None or size.size < 2 or rest < RESTS * idle or not size[-1] > THROWN * size[0]:
        return None
    worst, moves = float(own.values.max()), signs.curve("vital/update_ratio")
    if worst < LIFTS * idle or moves is None:
        return None
    text = (
        f"The learning rate is too high: a step raised the loss of its own batch by "
        f"{number(worst, 2)}, steps move the weights by up to "
        f"{percent(float(moves.values.max()))}, to {number(size[-1] / size[0], 2)}x their first "
        f"norm, and the loss rests at {number(rest)}."
    )
    names = ("vital/own_batch", "vital/update_ratio", "curvature/stability")
    return Symptom(text=text, names=names, step=own.records[int(own.values.argmax())].step)


def _far_to_go(signs: Signs) -> bool:
    """Whether outputs may still grow towards their targets: the loss is far above a guess's.

    One that was far above its first value was thrown there.
    """
    guess, values = signs.constant_loss, signs.losses[1][np.isfinite(signs.losses[1])]
    if values.size and float(values.max()) > FAR * abs(values[0]):
        return False
    return guess is None or signs.level[1] > ABOVE * guess


def momentum_too_high(signs: Signs) -> Symptom | None:
    """Momentum that remembers a large part of the run, and a loss that swings.

    One that fell and rose again, and rests high, swings, too, though it ends below its start.
    """
    beta = signs.option("momentum")
    if beta < HEAVY or 1 / (1 - min(beta, 1 - 1e-9)) < MEMORY * signs.length:
        return None
    if signs.state == "learned" and not _swings(signs):
        return None
    text = (
        f"Momentum {number(beta)} is too high: it remembers {number(1 / (1 - beta))} steps of "
        f"{signs.length}, and the loss swings or grows instead of falling."
    )
    return Symptom(text=text, names=("vital/own_batch", "vital/update_ratio"))


def _swings(signs: Signs) -> bool:
    """Whether the loss was far lower before than at its end, and that is high."""
    values, end = signs.losses[1], signs.level[1]
    if len(values) < 5 * PARTS or end < RESTS * signs.best_idle:
        return False
    return min(float(np.median(part)) for part in np.array_split(values, PARTS)) < BACK * end


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
    if began is None or began > len(norm.values) // 2:
        return None
    step = int(norm.steps[began])
    if not signs.level[1]:
        return _nothing_asked(signs, step)
    text = (
        f"The gradient is exactly 0 since step {step}, and the loss is not "
        f"({number(signs.level[1])}): it is lost to rounding, as by underflow in half precision, "
        "or what the loss reads of the model has no slope, as behind round or argmax."
    )
    return Symptom(text=text, names=("vital/gradient_norm", "vital/update_ratio"), step=step)


def _nothing_asked(signs: Signs, step: int) -> Symptom | None:
    """A loss that is exactly 0 from the first step on, with its gradient: no one learned that."""
    if step > 0 or signs.losses[1].any():
        return None
    text = (
        "Loss and gradient are exactly 0 at all measured steps: the loss asks nothing of the "
        "model, as that of a softmax over a single logit, a mean over an empty mask, or a factor 0."
    )
    remedy = (
        "of one logit take binary_cross_entropy_with_logits; of cross_entropy give one per class",
        "look for a mask, a weight or a factor of the loss that is 0",
    )
    names = ("vital/losses", "vital/gradient_norm")
    return Symptom(text=text, names=names, where="the loss", remedy=remedy)


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
