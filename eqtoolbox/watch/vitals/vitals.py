"""The vital signs of a due step, as records `vital/...`."""

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eqtoolbox.linalg.parcel import Parcel
from eqtoolbox.linalg.vectors import dot, fitted_to, norm, not_finite
from eqtoolbox.replay.gradient import replayed_gradient
from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.operations import by_kernels
from eqtoolbox.replay.thread.scope import LeavesTrace
from eqtoolbox.replay.tree import tensors
from eqtoolbox.replay.window import in_pieces
from eqtoolbox.watch.journal import Journal
from eqtoolbox.watch.memory import samples
from eqtoolbox.watch.plan import VITAL
from eqtoolbox.watch.snapshot import Snapshot
from eqtoolbox.watch.vitals.ear import Heard
from eqtoolbox.watch.vitals.evaluation import evaluated
from eqtoolbox.watch.vitals.hearing import Hearing
from eqtoolbox.watch.vitals.retraced import Retraced
from eqtoolbox.watch.vitals.sameness import are_alike
from eqtoolbox.watch.vitals.strides import Strides
from eqtoolbox.watch.vitals.summing import evenly, finite, spread
from eqtoolbox.watch.vitals.tally import Labels
from eqtoolbox.watch.vitals.unreached import Unreached

BATCHES = 5  # in a row on which a unit that is silent counts as such
NAMED = 6  # layers that facts name
KEPT = 20  # measurements that the noise scale is a mean over
_ONE_FEATURE = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class Vitals:
    """Takes the vital signs of steps that are measured anyway.

    Args:
        model: that trains.
        hearing: of the losses of every step.
        journal: to which they go.
    """

    def __init__(self, model: nn.Module, hearing: Hearing, journal: Journal) -> None:
        self._model, self._hearing, self._journal = model, hearing, journal
        self._silent: dict[str, deque[Any]] = {}  # by layer, of the last batches
        self._halves: deque[tuple[float, float]] = deque(maxlen=KEPT)  # of the noise scale
        self._unreached, self._retraced = Unreached(), Retraced()
        self._labels = Labels()  # of all measured batches
        self.samples = 0  # of the last step that was measured
        self._begun = -1  # step of the first loss that was not told yet

    def kept(self) -> str:
        """What vital signs of later steps are told with: one text, as no checkpoint reads it."""
        silent = {n: [x.astype(int).tolist() for x in seen] for n, seen in self._silent.items()}
        told = {"halves": [*self._halves], "silent": silent, "begun": self._begun}
        counts = {"labels": self._labels.counts.tolist()}
        return json.dumps(
            told | counts | self._unreached.state_dict() | self._retraced.state_dict()
        )

    def restore(self, kept: str) -> None:
        """Go on where `kept` was taken; an empty text is of a run that kept nothing."""
        state = json.loads(kept or "{}")
        self._halves = deque(map(tuple, state.get("halves", ())), maxlen=KEPT)
        silent = state.get("silent", {}).items()
        self._silent = {n: deque(np.array(x, dtype=bool), maxlen=BATCHES) for n, x in silent}
        self._begun = state.get("begun", -1)
        self._labels.counts = torch.tensor(state.get("labels", ()), dtype=torch.int64)
        self._unreached.load_state_dict(state)
        self._retraced.load_state_dict(state)

    def losses(self, step: int) -> None:
        """Tell the losses of every step since the last time; that fails by itself alone."""
        self.sent(step, Parcel())()

    def sent(self, step: int, parcel: Parcel) -> Callable[[], None]:
        """The same, where they go to the host with a parcel: call it when that has arrived."""
        first, self._begun = min(self._begun + 1, step), step
        try:
            heard = [self._hearing.sent(held_out, parcel) for held_out in (False, True)]
        except BaseException as error:
            self._journal.failed(VITAL, error)
            return lambda: None

        def tell() -> None:
            try:
                for name, read in zip(("losses", "held_out"), heard, strict=True):
                    if values := read():
                        told = [v if math.isfinite(v) else "nan" for v in values]
                        facts = {"losses": told, "first": first}
                        self._emit(name, values[-1], facts, always=True)
            except BaseException as error:
                self._journal.failed(VITAL, error)

        return tell

    def take(self, snapshot: Snapshot, scale: float = 1.0) -> None:
        """Evaluate the loss of the step before and after it, and tell what shows."""
        objective = snapshot.training
        if objective is None or VITAL in self._journal.disabled or snapshot.after is None:
            return
        if snapshot.broken:
            return
        try:
            self.samples = samples(objective)
            with objective.isolated():
                self._take(snapshot, objective, scale)
            self._journal.succeeded(VITAL)
        except LeavesTrace:
            self._journal.disabled.add(VITAL)
        except BaseException as error:
            self._journal.failed(VITAL, error)

    def _take(self, snapshot: Snapshot, objective: Objective, scale: float) -> None:
        single = objective.calls[-1]
        with torch.no_grad():
            heard, output, value = by_kernels(evaluated, single, snapshot.before)
        loss = float(value)
        if not math.isfinite(loss):  # what else was heard are numbers of something broken
            bad = not_finite({"output": output}) if isinstance(output, Tensor) else "?"
            given = [x for x in tensors(single.batch) if x.is_floating_point()]
            batch = any(not bool(x.isfinite().all()) for x in given)
            self._emit("not_finite", 1.0, {"output": not bad, "batch": batch})
            return
        self._inputs(heard, single)
        self._outputs(heard, output, loss)
        self._targets(heard, single, loss)
        output = heard.last = heard.asked = heard.rectified = None  # as large as all logits
        if scale != 1:
            self._emit("loss_scale", scale)
        self._scales(heard)
        self._units(heard)
        self._modes(heard)
        with torch.no_grad():
            moved = {n: p.detach() for n, p in (snapshot.after or {}).items()}
            after = float(by_kernels(in_pieces(single, snapshot.parts).loss, moved))
        self._emit("own_batch", after - loss, {"loss": loss})
        gradient = snapshot.slope(objective, scale)
        self._steps(snapshot, gradient, heard, after < loss)
        told = self._unreached.look(snapshot, gradient, heard.order)
        self._emit("no_gradient", told.entries, vars(told))
        self._noise(snapshot, single, gradient)

    def _inputs(self, heard: Heard, single: Objective) -> None:
        if heard.inputs is not None:
            self._emit("input_scale", heard.inputs.ratio, vars(heard.inputs))

    def _outputs(self, heard: Heard, output: Any, loss: float) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and len(output) > 1:
            size, width, largest = spread(output.detach().reshape(len(output), -1))
            self._emit("output_spread", width / max(size, 1e-300), {"spread": width})
            self._emit("largest_output", largest)
        if (told := heard.directed) is not None:
            self._emit("direction_spread", told.spread, {"other": told.other})
        self._emit("probabilities", float(heard.probabilities != ""), {"of": heard.probabilities})
        self._emit("across", float(heard.across))
        if heard.rectified is not None:
            logits = heard.rectified.movedim(1, 0).flatten(1) if heard.rectified.dim() > 1 else None
            never = 0 if logits is None else int((logits <= 0).all(1).sum())
            of = {"never": never, "classes": 1 if logits is None else len(logits)}
            self._emit("rectified", float((heard.rectified <= 0).double().mean()), of)
        if heard.dropout[0]:
            self._emit("dropout", heard.dropout[0], {"layer": heard.dropout[1]})
        if heard.attention.calls:
            facts = {"logit": heard.attention.logit}
            facts = facts if math.isfinite(heard.attention.logit) else {}
            self._emit("attention_entropy", heard.attention.entropy, facts)
        if heard.risks:
            worst = sorted(heard.risks.items(), key=lambda item: item[1])
            names = [name for name, _ in worst]
            self._emit("risk", float(len(names)), {"what": names, "least": [x for _, x in worst]})

    def _targets(self, heard: Heard, single: Objective, loss: float) -> None:
        targets = heard.targets
        if targets.labels is not None and targets.whole(loss):
            self._labels.add(targets.labels)
        if heard.squared is not None:
            shapes = dict(zip(("prediction", "target"), heard.squared, strict=True))
            self._emit("broadcast", 1.0, shapes)
        if heard.asked is None:
            return
        own = targets.kind.endswith("entropy") or heard.direct or bool(heard.asked.any())
        alike = own and are_alike(heard.asked, tensors(single.batch))  # a residual is to be 0
        sign, kind = targets.sign(loss), {"kind": targets.kind}
        if sign and (alike or bool((heard.asked != heard.asked.flatten()[:1]).any())):
            self._emit("loss_sign", float(sign), kind)  # of targets that the loss made none
        constant = targets.of(loss, self._labels)
        if constant is not None:
            facts = {"alike": alike, "once": targets.once(self._labels)}
            self._emit("constant_loss", constant, kind | facts | targets.moments)

    def _scales(self, heard: Heard) -> None:
        if heard.scales:
            sizes = torch.stack([s.cpu() for s in heard.scales.values()]).tolist()
            facts = evenly({"layers": [*heard.scales], "scales": sizes})
            self._emit("activation_scale", max(sizes), facts)

    def _units(self, heard: Heard) -> None:
        """Units that gave nothing on the last batches, by layer; saturated ones."""
        shares, facts = {}, {}
        for layer, silent in heard.silent.items():
            kept = self._silent.setdefault(layer, deque(maxlen=BATCHES))
            if kept and kept[-1].shape != silent.shape:
                kept.clear()
            kept.append(silent.numpy().copy())
            shares[layer] = float(np.all(kept, axis=0).mean())
            facts[layer] = len(kept)
        if shares:
            worst = sorted(shares, key=lambda layer: -shares[layer])[:NAMED]
            told = {"layers": worst, "shares": [shares[n] for n in worst]}
            told["units"] = [len(heard.silent[n]) for n in worst]
            self._emit("silent", shares[worst[0]], {**told, "batches": facts[worst[0]]})
        if heard.saturated:
            layer = max(heard.saturated, key=lambda name: heard.saturated[name])
            inner = max(heard.hidden.items(), key=lambda item: item[1], default=("", 0.0))
            about = {"layer": layer, "hidden": inner[1], "hidden_layer": inner[0]}
            self._emit("saturated", heard.saturated[layer], about)

    def _modes(self, heard: Heard) -> None:
        named = [(n, m) for n, m in self._model.named_modules() if isinstance(m, _ONE_FEATURE)]
        off = [n for n, m in named if not m.training]
        self._emit(
            "eval_mode", float(len(off)), {"root": not self._model.training, "named": off[:3]}
        )
        training = [count for count, trains in heard.batch_norms if trains]
        if training:
            self._emit("batch_norm", float(min(training)))

    def _steps(self, snapshot: Snapshot, gradient: Parameters, heard: Heard, lowered: bool) -> None:
        layers = Strides.of(snapshot, gradient, heard.order)
        back = self._retraced.look(snapshot.step, snapshot.before, layers.share, lowered)
        if back is not None:
            self._emit("written_back", back.steps, vars(back))
        used = snapshot.whole_gradient
        told: dict[str, Any] = {"used": norm(used)} if used else {}
        given = (snapshot.gradient or {}).values()
        some = told["used"] if used else layers.whole or any(g.any() for g in given)
        told["cleared"] = not some
        self._emit("gradient_norm", norm(gradient), told)
        self._emit("update_norm", layers.whole)
        ratios, slopes = layers.ratios, layers.slopes
        if ratios:
            weight = math.hypot(*layers.weight)
            moving = [n for n, w in zip(layers.names, layers.weight, strict=True) if w > 0]
            facts = {"least": min(ratios), "most": max(ratios), "weight": weight}
            facts |= evenly({"layers": moving, "ratios": ratios})
            self._emit("update_ratio", sorted(ratios)[len(ratios) // 2], facts)
            self._emit("weight_decay", layers.decay, {"weight": weight})
        if len(slopes) > 1 and slopes[-1] > 0:
            ends: dict[str, Any] = {"first": layers.names[0], "last": layers.names[-1]}
            self._emit("gradient_depth", slopes[0] / slopes[-1], ends | {"layers": len(slopes)})

    def _noise(self, snapshot: Snapshot, single: Objective, gradient: Parameters) -> None:
        """Cosine of the gradients of the two halves of a batch, and what batch would do."""
        if snapshot.training is not single:
            return
        try:
            (half, one), (_, two) = single.split(2)
            first = replayed_gradient(in_pieces(half, snapshot.parts // 2 or 1), snapshot.before)
        except LeavesTrace:
            raise
        except Exception:  # whatever a loss says to half of its batch
            return
        # the gradient of the rest is (total g - one first) / two, of which no copy is made
        total, first = one + two, fitted_to(gradient, first)
        whole, own, both = dot(gradient, gradient), dot(first, first), dot(first, gradient)
        rest = total**2 * whole - 2 * total * one * both + one**2 * own
        if own > 0 and rest > 0:
            cosine = (total * both - one * own) / math.sqrt(own * rest)
            self._emit("halves", cosine, {"samples": int(total)})
            inner = (total * both - one * own) / two  # <g1, g2>, unbiased for |g|^2
            spread = own + rest / two**2 - 2 * inner  # |g1 - g2|^2 = tr S (1 / n1 + 1 / n2)
            self._halves.append((spread / (1 / one + 1 / two), inner))
            told = np.array(self._halves)
            noise, signal = told.mean(0)
            if signal > 0:  # of a ratio of means: scatter of noise - ratio signal, to first order
                count, left = len(told), told @ [1.0, -noise / signal]
                error = math.sqrt(float(left @ left) / max(count * (count - 1), 1)) / signal
                facts = {"batch": int(total), "measurements": count}
                stderr = float(error) if count > 1 else None
                self._emit("noise_scale", float(noise / signal), facts, stderr=stderr)

    def _emit(
        self,
        name: str,
        value: float,
        facts: Mapping[str, Any] | None = None,
        always: bool = False,
        stderr: float | None = None,
    ) -> None:
        if always or math.isfinite(value):
            known = {k: v for k, v in (facts or {}).items() if finite(v)}
            self._journal.emit(f"{VITAL}/{name}", value, facts=known, stderr=stderr)
