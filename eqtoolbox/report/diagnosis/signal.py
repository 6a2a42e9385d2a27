"""Symptoms of the signal: where it is lost between inputs, units, gradients and outputs."""

from dataclasses import replace

import numpy as np

from eqtoolbox.report.diagnosis.disease import Symptom
from eqtoolbox.report.diagnosis.signs import CONSTANT, Signs
from eqtoolbox.report.diagnosis.steps import RESTS, rate_too_high
from eqtoolbox.report.finding import Level
from eqtoolbox.report.trace import RECENT
from eqtoolbox.report.words import listing, number, percent

LOST = 1e-3  # of the last layer's gradient that reaches the first
SATURATED = 0.8  # share of a layer's numbers at an end of their range
DEAD, BORNE = 0.25, 0.5  # share of a layer's units: fewer are usual, and more while it learns
SEEN = 3  # batches on which a unit must be silent
ENORMOUS = 3e3  # |gradient| |weights| / loss: of order 1 to 100 in healthy runs
NAUGHT = 1e-4  # size of what the first layer is given; standardised inputs have 1
LARGE = 0.25  # share of the parameters
SHARP = 0.25  # entropy of attention over that of uniform one


def vanishing(signs: Signs) -> Symptom | None:
    """Gradients that do not reach the first layers."""
    depth, facts = signs.now("vital/gradient_depth"), signs.facts("vital/gradient_depth")
    saturated, layer = signs.now("vital/saturated"), signs.facts("vital/saturated").text("layer")
    if signs.state == "learned":
        return _rests_saturated(signs)
    if signs.state not in ("stuck", "little", "grew") or _whole_layer(signs):
        return None
    first, last = facts.text("first"), facts.text("last")
    if depth is not None and 0 < depth < LOST and (facts.count("layers") or 0) > 2:
        text = (
            f"Gradients vanish: {first} is given {number(depth, 2)} of what {last} is given, so "
            "that the first layers do not learn."
        )
        return Symptom(
            text=text, names=("vital/gradient_depth", "vital/output_spread"), where=first
        )
    if saturated is not None and saturated > SATURATED:
        text = (
            f"Gradients vanish in {layer}: {percent(saturated)} of what its activation gives is at "
            "an end of its range, where the slope is 0."
        )
        return Symptom(text=text, names=("vital/saturated",), where=layer)
    return None


def _rests_saturated(signs: Signs) -> Symptom | None:
    """Layers that learn little in a run that learned by those behind them."""
    facts, rest = signs.facts("vital/saturated"), signs.level[1]
    share = signs.told("vital/saturated", "hidden")
    flat = share.size > 0 and float(np.median(share[-RECENT:])) > SATURATED
    if not flat or share[0] < SATURATED or rest < RESTS * signs.best_idle:
        return None
    layer = facts.text("hidden_layer")
    text = (
        f"Gradients hardly pass {layer}: {percent(float(share[-1]))} of what its activation gives "
        f"was at an end of its range from the start, and the loss is still {number(rest)}."
    )
    return Symptom(text=text, names=("vital/saturated",), where=layer, level="note")


def exploding(signs: Signs) -> Symptom | None:
    """Gradients that are enormous where the loss is not.

    Of a loss that is near 0 at the start, as a difference is, its usual size is what counts.
    """
    norm = signs.curve("vital/gradient_norm")
    weight = signs.told("vital/weight_decay", "weight")
    steps, losses = signs.losses
    known = np.isfinite(losses)
    if norm is None or not known.any() or not np.isfinite(weight[:1]).any():
        return None
    at = int(norm.values.argmax())
    here = float(np.interp(norm.steps[at], steps[known], np.abs(losses[known])))
    loss = max(abs(signs.best_idle), float(np.median(np.abs(losses[known]))), here)
    grown = float(norm.values[at]) * float(weight[0])
    if not loss or grown < ENORMOUS * loss or _unscaled(signs):
        return None
    if at and (signs.state in ("grew", "not finite") or rate_too_high(signs)):
        return None  # long steps brought it there
    median = float(np.median(norm.values))
    text = (
        f"Gradients explode: their norm was {number(norm.values[at])} at step "
        f"{norm.records[at].step}, {number(norm.values[at] / max(median, 1e-300), 2)}x its median, "
        "though the loss was no larger than usual."
    )
    names = ("vital/gradient_norm", "vital/gradient_depth")
    return Symptom(text=text, names=names, step=norm.records[at].step)


def no_gradient(signs: Signs) -> Symptom | None:
    """Parameters that train by name and get no gradient at any step."""
    facts = signs.facts("vital/no_gradient")
    count, total, layers = facts.count("entries"), facts.count("total"), facts.texts("layers")
    steps = facts.count("steps") or 0
    if not count or not total or steps < SEEN:
        return None
    text = (
        f"{count:,} of {total:,} parameters got no gradient at any of {steps} measured steps: "
        f"layers {listing(list(layers))} are cut off from the loss, or never called."
    )
    grave = facts.flag("before") or count > LARGE * total
    where = layers[0] if layers else ""
    level: Level | None = None if grave else "note"
    return Symptom(text=text, names=("vital/no_gradient",), where=where, level=level)


def dead_layer(signs: Signs) -> Symptom | None:
    """A layer none of whose units gives anything."""
    found = dead(signs)
    if found is None or not _whole_layer(signs):
        return None
    text = found.text + " No input passes this layer, and nothing before it learns."
    return replace(found, text=text)


def dead(signs: Signs) -> Symptom | None:
    """Units that give nothing on batch after batch."""
    share, facts = signs.now("vital/silent"), signs.facts("vital/silent")
    layers, units, batches = facts.texts("layers"), facts.counts("units"), facts.count("batches")
    few = BORNE if signs.state == "learned" else DEAD
    if share is None or share < few or not layers or (batches or 0) < SEEN or not units:
        return None
    count = round(share * units[0])
    text = f"{count} of {units[0]} units of layer {layers[0]} are dead: they gave 0 for every "
    text += f"sample of {batches} batches in a row."
    return Symptom(text=text, names=("vital/silent",), where=layers[0])


def _whole_layer(signs: Signs) -> bool:
    return (signs.now("vital/silent") or 0.0) == 1


def constant_input(signs: Signs) -> Symptom | None:
    """Inputs that do not vary from sample to sample."""
    facts = signs.facts("vital/input_scale")
    columns = facts.count("columns")
    size = facts.number("rms")
    tiny = size is not None and size < NAUGHT
    if not columns or (facts.count("constant") != columns and not tiny):
        return None
    if signs.state == "learned" and not signs.constant:  # some input arrives by another way
        return None
    what = "nearly 0" if tiny else "constant"
    text = f"The input is {what}: the first layer is given the same numbers for every sample, so "
    text += "that the outputs cannot depend on it and the input is ignored."
    return Symptom(text=text, names=("vital/input_scale",), where="the data")


def ignored_input(signs: Signs) -> Symptom | None:
    """Outputs that do not depend on the inputs."""
    spread = signs.now("vital/output_spread")
    if spread is None or spread > CONSTANT or signs.state not in ("stuck", "grew", "little"):
        return None
    text = (
        f"The outputs are constant: they differ by {number(spread, 2)} of their size from input "
        "to input, so that the input is ignored."
    )
    return Symptom(text=text, names=("vital/output_spread",), where="the output of the model")


def saturated_attention(signs: Signs) -> Symptom | None:
    """Attention that looks at one key only, and was not taught to by the data."""
    curve = signs.curve("vital/attention_entropy")
    if curve is None or curve.now > SHARP:
        return None
    if signs.state == "learned" and curve.records[0].value > SHARP:
        return None
    logit = signs.facts("vital/attention_entropy").number("logit")
    large = "" if logit is None else f", its logits reach {number(logit, 2)}"
    text = (
        f"Attention is saturated: its entropy is {number(curve.now, 2)} of that of uniform "
        f"attention{large}, so that nearly one-hot weights pass little gradient to queries and "
        "keys."
    )
    return Symptom(text=text, names=("vital/attention_entropy",), where="attention")


def _unscaled(signs: Signs) -> bool:
    return (signs.now("vital/input_scale") or 0.0) > 1e3
