"""Symptoms of the data: their scale, their signal, what is memorised, and odd batches."""

import numpy as np

from eqtoolbox.report.diagnosis.disease import Symptom
from eqtoolbox.report.diagnosis.leap import OUTLIER, leap
from eqtoolbox.report.diagnosis.signs import LEARNED, STUCK, Signs
from eqtoolbox.report.diagnosis.steps import ABOVE, MOVED, clipped_share, each_step
from eqtoolbox.report.diagnosis.tail import stands_out
from eqtoolbox.report.finding import Level
from eqtoolbox.report.words import number, percent

AGREE = 0.3  # cosine of the gradients of two halves of a batch: less is noise
GAP = 1.5  # held-out over training loss
ROSE = 1.15  # held-out loss over its smallest
MATTERS = 0.2  # of the loss of a constant output: a smaller held-out loss is fine
ALIKE = 0.7  # cosine of the gradients of two halves of a batch: a step for one is one for all
DROPPED = 0.8  # rate of dropout; 0.1 to 0.5 are usual
BACK = 0.5  # of what the run began with: so high a spike throws it back


def moving_target(signs: Signs) -> Symptom | None:
    """A loss that stays though every step lowers it, for all samples alike."""
    halves, own = signs.curve("vital/halves"), signs.curve("vital/own_batch")
    if signs.state not in ("stuck", "little", "grew") or halves is None or own is None:
        return None
    if min(len(halves.records), len(own.records)) < 4:
        return None
    agree, each = float(np.median(halves.values)), each_step(signs)
    if agree < ALIKE or not -each * signs.length >= MOVED:
        return None
    start, end = signs.level
    text = (
        f"The loss was {number(start)} and is {number(end)}, though each step lowers it by "
        f"{percent(-each)} on its batch and halves of a batch agree (cosine {number(agree, 2)}): "
        "what the loss asks for moves, as where two players train against each other, with a "
        "target network, or in data that drift, or something undoes the steps."
    )
    return Symptom(text=text, names=("vital/own_batch", "vital/halves"))


def no_signal(signs: Signs) -> Symptom | None:
    """Steps of healthy length, no fall, and halves of a batch that do not agree."""
    halves, ratio = signs.curve("vital/halves"), signs.now("vital/update_ratio")
    if signs.state not in ("stuck", "little") or halves is None or len(halves.records) < 4:
        return None
    guess = signs.constant_loss
    if guess is not None and signs.level[1] < STUCK * guess < signs.level[0] * STUCK**2:
        return None  # it came down from far above a guess, and below it
    if ratio is None or ratio * signs.length < MATTERS or clipped_share(signs) > BACK:
        return None
    agree = float(np.median(halves.values[len(halves.values) // 4 :]))
    if agree > AGREE or signs.constant or far_above_guess(signs) is not None:
        return None
    names = ("vital/halves", "vital/update_ratio")
    if signs.below_guess is not None:
        below, error = (percent(share) for share in signs.below_guess)
        text = (
            f"The signal is weak: the loss lies {below} (± {error}) below that of a guess on the "
            f"same batches, and gradients of two halves of a batch hardly agree (cosine "
            f"{number(agree, 2)})."
        )
        remedy = (
            "take larger batches, or more steps at a smaller learning rate",
            "look at a held-out loss: labels that are learned by heart do not lower it",
        )
        return Symptom(text=text, names=names, level="note", remedy=remedy)
    text = (
        f"No signal: the loss ({number(signs.level[1])}) hardly falls below that of a guess, and "
        f"the gradients of two halves of a batch do not agree (cosine {number(agree, 2)}), as with "
        "shuffled labels."
    )
    return Symptom(text=text, names=names, where="the data")


def far_above_guess(signs: Signs) -> Symptom | None:
    """A loss that fell, and still lies far above that of a constant output."""
    guess, (start, end) = signs.constant_loss, signs.level
    if signs.state not in ("stuck", "little") or not guess or end < ABOVE * guess:
        return None
    if end > LEARNED * start:
        return None
    text = (
        f"The loss is still {number(end / guess, 2)}x what a constant output reaches: it fell from "
        f"{number(start)} to {number(end)}, where a guess has {number(guess)}. Outputs and targets "
        "are of different size, or the run is too short."
    )
    return Symptom(text=text, names=("vital/losses", "vital/constant_loss"), where="the data")


def dropped(signs: Signs) -> Symptom | None:
    """Dropout that lets hardly anything pass, in a run without a signal."""
    rate = signs.now("vital/dropout")
    if rate is None or rate < DROPPED or signs.state not in ("stuck", "little"):
        return None
    layer = signs.facts("vital/dropout").text("layer")
    text = (
        f"Dropout of {number(rate, 2)} behind {layer} leaves {percent(1 - rate)} of its units at a "
        f"time, and the loss ({number(signs.level[1])}) {signs.course}: what passes is mostly "
        "the noise of the masks."
    )
    names = ("vital/dropout", "vital/halves")
    level: Level | None = None if signs.below_guess is None else "note"
    return Symptom(text=text, names=names, where=layer, level=level)


def not_learning(signs: Signs) -> Symptom | None:
    """No fall of the loss, for a reason that nothing here tells."""
    if signs.state != "stuck":
        return None
    start, end = signs.level
    lowest = min(float(np.median(part)) for part in np.array_split(signs.losses[1], 5))
    if lowest < LEARNED * start:  # it fell and rose again, which another rule tells
        return None
    guess = signs.constant_loss
    same = "" if guess is None else f"; a constant output reaches {number(guess)}"
    text = f"The run does not learn: the loss was {number(start)} and is {number(end)}{same}."
    return Symptom(text=text, names=("vital/losses",))


def overfit(signs: Signs) -> Symptom | None:
    """A held-out loss that rises, or stays, while that of training falls."""
    held = signs.curve("vital/held_out")
    if held is None or len(held.records) < 4 or signs.state not in ("learned", "little"):
        return None
    last, least, train = held.now, float(held.values.min()), signs.level[1]
    idle = signs.best_idle
    if last <= GAP * train or last < MATTERS * idle:
        return None
    rose = last > ROSE * least
    if not rose and (train > last / 5 or last < 2 * MATTERS * idle):
        return None
    best = held.records[int(held.values.argmin())].step
    text = (
        f"The run overfits: the training loss is {number(train)}, that of held-out data "
        f"{number(last)}" + (f", up from {number(least)} at step {best}." if rose else ".")
    )
    return Symptom(text=text, names=("vital/held_out", "vital/losses"), step=best)


def spike(signs: Signs) -> Symptom | None:
    """A loss far above those around it, or one that throws the run far above its start."""
    found = _isolated(signs)
    thrown = leap(signs)
    if found is not None or thrown is None:
        return found
    text = (
        f"The loss leaps from {number(thrown.before)} to {number(thrown.loss)} at about step "
        f"{thrown.step}, far above its start, and the steps after it are thrown, too: the batch of "
        "that step is an outlier, or the step before it was far too long."
    )
    level: Level | None = "alarm" if signs.idle else None
    return Symptom(text=text, names=("vital/losses",), step=thrown.step, level=level)


def _isolated(signs: Signs) -> Symptom | None:
    """A loss far above those around it and above the run's tail, from which the run recovers."""
    steps, values = signs.losses
    if signs.state not in ("learned", "little") or len(values) < 30:
        return None
    top = max(signs.level[0], signs.constant_loss or 0.0)
    late = range(len(values) // 10, len(values) - 3)
    for at in sorted(late, key=lambda i: -values[i])[:1]:
        near = np.delete(values[max(0, at - 10) : at + 11], min(at, 10))
        middle = float(np.median(near))
        sigma = 1.4826 * float(np.median(np.abs(near - middle)))
        high = values[at] - middle > max(OUTLIER * sigma, BACK * abs(top))
        if sigma > 0 and high and values[at] > 3 * abs(middle) and stands_out(values, at):
            text = (
                f"The loss spikes: {number(values[at])} at about step {steps[at]}, "
                f"{number(middle)} before and after it."
            )
            return Symptom(text=text, names=("vital/losses",), step=int(steps[at]))
    return None
