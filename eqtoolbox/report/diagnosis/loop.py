"""Symptoms of the training loop: what it forgets, and what it gives to the loss."""

import numpy as np

from eqtoolbox.report.diagnosis.disease import Symptom
from eqtoolbox.report.diagnosis.signs import Signs
from eqtoolbox.report.finding import Level
from eqtoolbox.report.words import listing, number, percent

GREW = 3.0  # times its start: a loss that was so large before it was lost had diverged
LEAST_STEPS = 3  # that were given no gradient
USUAL = 4  # samples from which the statistics of a batch are worth something


def zero_grad(signs: Signs) -> Symptom | None:
    """Gradients that are sums over steps."""
    name = "monitor/closure_grad_ratio"
    rows = signs.run.rows(name) if name in signs.run else ()
    stale = [row.step for row in rows if "zero_grad" in row.facts.text("cause")]
    if len(stale) < 2:
        return None
    cosine = signs.now("monitor/closure_grad_cos")
    how = "" if cosine is None else f" (cosine {number(cosine, 2)} with that of the batch)"
    text = "Gradients are never cleared: what the optimizer is given adds up over all steps so far"
    names = ("monitor/closure_grad_cos", name)
    return Symptom(text=f"{text}{how}.", names=names, where="the training loop", step=stale[0])


def cleared(signs: Signs) -> Symptom | None:
    """Steps that are given no gradient, of a loss that has one."""
    norm = signs.curve("vital/gradient_norm")
    if norm is None or len(norm.records) < LEAST_STEPS:
        return None
    if not all(row.value > 0 and row.facts.flag("cleared") for row in norm.records):
        return None
    text = (
        "No gradient reaches the optimizer: that of the loss is not 0 "
        f"({number(norm.now, 2)}), but what each measured step was given is: it is cleared between "
        "backward and step, or backward is never called."
    )
    names = ("vital/gradient_norm", "vital/update_norm")
    return Symptom(text=text, names=names, where="the training loop", step=int(norm.steps[0]))


def not_finite(signs: Signs) -> Symptom | None:
    """A loss that was calm until it was NaN: arithmetic or data, not the length of the steps."""
    if signs.lost_at is None or _grew(signs):
        return None
    risk, bad = signs.facts("vital/risk").texts("what"), signs.facts("vital/not_finite")
    last = "" if np.isnan(signs.level[1]) else f", {number(_before(signs)[-1])} just before"
    text = f"The loss is NaN or infinite since step {signs.lost_at} and was calm until then{last}: "
    if bad.flag("batch"):
        text += "the batch itself holds numbers that are not finite."
        remedy = ("drop or fill the samples whose inputs are NaN: check x.isfinite().all()",)
        return Symptom(text=text, where="the data", remedy=remedy, step=signs.lost_at)
    if risk:
        text += f"it takes the {listing(list(risk[:2]))}, where small rounding gives NaN."
    else:
        text += "an operation on a bad value, not the length of the steps."
    return Symptom(text=text, names=("vital/risk",), where="the loss", step=signs.lost_at)


def at_times(signs: Signs) -> Symptom | None:
    """A loss that is NaN or infinite for some batches, which the loop passes over."""
    steps, values = signs.losses
    bad = steps[~np.isfinite(values)]
    if not bad.size or signs.lost_at is not None:
        return None
    before = values[steps < bad[0]]
    if before.size > 1 and _rose(before):  # it diverged, and weights were written back
        return None
    when = f"about step {bad[0]}"
    when = when if bad[0] == bad[-1] else f"times between {when} and {bad[-1]}"
    text = f"The loss is NaN or infinite at {when}, and finite after that: some batches give none."
    return Symptom(text=text, names=("vital/losses",), where="the data", step=int(bad[0]))


def diverged(signs: Signs) -> Symptom | None:
    """A loss that grew until it was not finite."""
    if signs.lost_at is None or not _grew(signs):
        return None
    top = float(np.max(np.abs(_before(signs))))
    text = (
        f"The training diverged: the loss grew from {number(signs.level[0])} to {number(top)} and "
        f"is no number since step {signs.lost_at}; the learning rate is too high."
    )
    return Symptom(
        text=text, names=("vital/update_ratio", "curvature/stability"), step=signs.lost_at
    )


def _before(signs: Signs) -> np.ndarray:
    values = signs.losses[1]
    return values[np.isfinite(values)]


def _grew(signs: Signs) -> bool:
    """Whether the loss had grown before it was lost."""
    values = _before(signs)
    return values.size > 1 and _rose(values)


def _rose(values: np.ndarray) -> bool:
    """Whether the last losses are far above the first."""
    sizes = np.abs(values)
    return float(sizes[-5:].max()) > GREW * float(np.median(sizes[:3]))


def evaluation_mode(signs: Signs) -> Symptom | None:
    """Steps that are taken while the model is in evaluation mode."""
    facts = signs.facts("vital/eval_mode")
    if not facts.flag("root") or (signs.now("vital/eval_mode") or 0) < 1:
        return None
    what = listing(list(facts.texts("named"))) or "BatchNorm and dropout"
    text = f"The model trains in evaluation mode: {what} does not work as in training."
    return Symptom(text=text, names=("vital/eval_mode",), where=what)


KINDS = {
    "cross_entropy": "the cross-entropy",
    "binary_cross_entropy": "the binary cross-entropy",
    "mse_loss": "the mean squared error",
    "smooth_l1_loss": "the smooth L1 loss",
    "huber_loss": "the Huber loss",
}


def wrong_sign(signs: Signs) -> Symptom | None:
    """A loss of a known kind that the steps raise."""
    if not signs.climbs:
        return None
    kind = KINDS.get(signs.facts("vital/loss_sign").text("kind"), "a standard loss")
    start, end = (number(abs(x)) for x in signs.level)
    how = "the optimizer maximises it" if signs.option("maximize") else "its negative is minimised"
    text = f"The sign of the loss is wrong: {kind} climbs from {start} to {end}, as {how}."
    return Symptom(text=text, names=("vital/loss_sign", "vital/losses"), where="the loss")


def unbounded(signs: Signs) -> Symptom | None:
    """A loss that has no least value, and runs away below zero."""
    if not signs.unbounded:
        return None
    start, end = signs.level
    text = (
        f"The loss falls without bound: it was {number(start)} and is {number(end)}. It has no "
        "least value, as where a term has the wrong sign or rewards the size of an output."
    )
    return Symptom(text=text, names=("vital/losses",), where="the loss")


def broadcast(signs: Signs) -> Symptom | None:
    """Predictions of shape (N, 1) and targets of shape (N), all of which are compared with all."""
    facts = signs.facts("vital/broadcast")
    sizes = facts.counts("prediction"), facts.counts("target")
    if not all(sizes):
        return None
    one, two = (f"({', '.join(map(str, shape))})" for shape in sizes)
    text = (
        f"The loss broadcasts: predictions of shape {one} against targets of shape {two} are "
        "compared all with all, so that every sample is taught the mean of all targets."
    )
    return Symptom(text=text, names=("vital/broadcast",), where="the loss")


def softmax_twice(signs: Signs) -> Symptom | None:
    """Probabilities where the loss expects logits."""
    if (signs.now("vital/probabilities") or 0) < 1:
        return None
    made = signs.facts("vital/probabilities").text("of") or "softmax"
    rows = ", rows that sum to 1," if made == "softmax" else ""
    text = f"Cross-entropy is given probabilities{rows} where it expects logits: {made} is applied "
    text += "twice, and the loss cannot fall to 0."
    return Symptom(text=text, names=("vital/probabilities",), where="the output of the model")


def softmax_across(signs: Signs) -> Symptom | None:
    """Probabilities that sum to 1 over the samples of a batch, not over the classes."""
    if (signs.now("vital/across") or 0) < 1:
        return None
    text = (
        "The softmax is over the wrong dimension: the probabilities that the cross-entropy takes "
        "sum to 1 over dimension 0, the samples of the batch, where they should over the classes."
    )
    return Symptom(text=text, names=("vital/across",), where="the output of the model")


def rectified_logits(signs: Signs) -> Symptom | None:
    """Logits that a ReLU keeps from being negative; classes that it silences are not learned."""
    share, facts = signs.now("vital/rectified"), signs.facts("vital/rectified")
    if share is None:
        return None
    never = signs.told("vital/rectified", "never")[-USUAL:]
    dead, text = int(np.nanmin(never, initial=np.inf) if len(never) else 0), ""
    if dead:
        text = f", {dead} of {facts.count('classes')} classes for every sample of the last batches"
    text = (
        f"A ReLU stands between the last layer and the loss: {percent(share)} of the logits are 0"
        f"{text}, and no gradient passes there."
    )
    level: Level | None = None if dead or signs.state != "learned" else "note"
    where = "the output of the model"
    return Symptom(text=text, names=("vital/rectified",), where=where, level=level)


def tiny_batches(signs: Signs) -> Symptom | None:
    """BatchNorm with the statistics of a handful of samples."""
    count = signs.now("vital/batch_norm")
    if count is None or count > USUAL:
        return None
    text = f"BatchNorm takes statistics of about {number(count)} samples or patches of images: "
    text += "they are noise, and the model in evaluation differs from the one that trains."
    return Symptom(text=text, names=("vital/batch_norm",), where="BatchNorm")
