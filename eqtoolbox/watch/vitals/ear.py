"""The ear: what the operations of one evaluation of the loss say of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eqtoolbox.replay.thread.scope import only_here, unobserved
from eqtoolbox.replay.tree import tensors
from eqtoolbox.watch.vitals.attention import Attention
from eqtoolbox.watch.vitals.broadcast import Shapes, narrow, outer
from eqtoolbox.watch.vitals.directions import Directed, Directions
from eqtoolbox.watch.vitals.inputs import Inputs
from eqtoolbox.watch.vitals.storage import place
from eqtoolbox.watch.vitals.targets import Targets, are_probabilities

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "convolution", "mkldnn_rnn_layer")
_RECTIFIERS = ("relu", "relu_", "hardtanh", "hardtanh_", "threshold", "threshold_", "clamp_min")
_SQUASHERS = {"sigmoid": (0.0, 1.0), "sigmoid_": (0.0, 1.0), "tanh": (-1, 1), "tanh_": (-1, 1)}
_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm")
PATCH = 64  # positions of an image that are as good as one, as neighbours are alike
_NEAR = 0.01  # to an end of its range a unit counts as saturated


@dataclass
class Heard:
    """What one evaluation of the loss said."""

    order: list[str] = field(default_factory=list)  # parameters of products, as they were used
    scales: dict[str, Tensor] = field(default_factory=dict)  # by layer: rms of what it gave
    silent: dict[str, Tensor] = field(default_factory=dict)  # by layer: units that gave nothing
    saturated: dict[str, float] = field(default_factory=dict)  # by layer: share of its numbers
    hidden: dict[str, float] = field(default_factory=dict)  # the same of what later products take
    last: Any = None  # what the last product gave
    inputs: Inputs | None = None  # of the first product, if possible one that varies
    attention: Attention = field(default_factory=Attention)
    targets: Targets = field(default_factory=Targets)
    directed: Directed | None = None  # what is divided by its length
    asked: Tensor | None = None  # targets of the last loss that takes some
    direct: bool = False  # whether that loss takes what the model gave out
    squared: Shapes | None = None  # of predictions and targets that are compared all with all
    probabilities: str = ""  # what made probabilities of what the loss takes for logits
    across: bool = False  # whether classes' probabilities sum to 1 over the first dimension
    rectified: Tensor | None = None  # logits that a rectifier left, as the loss takes them
    dropout: tuple[float, str] = (0.0, "")  # the largest share that is dropped, behind which layer
    batch_norms: list[tuple[int, bool]] = field(default_factory=list)  # independent ones, trains
    risks: dict[str, float] = field(default_factory=dict)  # operations near where they break


class Ear(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operations of a forward.

    Args:
        params: the very tensors that it is a function of.
        heard: what it notes.
    """

    def __init__(self, params: Mapping[str, Tensor], heard: Heard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {place(p): n for n, p in params.items()}
        self.heard = heard
        self.axis = -1  # of the units of what comes next
        self.normed = False  # whether a table or a norm came before the first product
        self.drawn = False  # whether the model drew random numbers: what varies may be they alone
        self.soft: dict[int, Tensor] = {}  # results of softmax and sigmoid
        self.across: dict[int, Tensor] = {}  # softmaxes over the first dimension, their logarithms
        self.rectified: dict[int, Tensor] = {}  # results of rectifiers
        self.mask: tuple[Tensor, float] | None = None  # zeros and ones, with the share of ones
        self.scores = 0  # numbers of the last product, if both its sides depend on the input
        self.attends: set[int] = set()  # softmaxes of such scores: of queries with keys
        self.units: list[tuple[str, Tensor]] = []  # silent ones since the last product, by layer
        self.ends: list[tuple[str, float]] = []  # saturated shares since then
        self.directions = Directions()
        self.outputs: dict[int, Tensor] = {}  # what the model gave out, by its storage

    @contextmanager
    def within(self, model: nn.Module | None) -> Iterator[None]:
        """Scope in which units are what a later product takes, or what the model gives out."""

        def begin(*_: Any) -> None:
            self.units.clear()
            self.ends.clear()
            self.drawn = False
            self.directions.begin()

        def end(_: Any, __: Any, output: Any) -> None:
            given = tensors(output)
            wrapped = any(map(is_functorch_wrapped_tensor, given))  # by torch.func: lie nowhere
            lying = () if wrapped else given
            self.outputs.update((place(x), x) for x in lying)
            self.directions.end(lying)
            if all(x.dim() for x in given):  # it gave no loss of its own
                self._settle()
            self.units.clear()

        hooks = [model.register_forward_pre_hook(only_here(begin))] if model is not None else []
        hooks += [model.register_forward_hook(only_here(end))] if model is not None else []
        try:
            yield
            if model is None:
                self._settle()
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        given = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)}
        given |= kwargs or {}
        if name in ("log", "sqrt", "div", "exp"):
            self._risk(name, given)
        result = func(*args, **(kwargs or {}))
        with unobserved():
            self._note(name, given, result)
            self.directions.note(name, given, result, self.names)
        self.drawn |= torch.Tag.nondeterministic_seeded in func.tags
        return result

    def _note(self, name: str, given: dict[str, Any], result: Any) -> None:
        heard = self.heard
        if name in _PRODUCTS:
            self._product(name, given, result[0] if isinstance(result, tuple) else result)
        elif name in _RECTIFIERS and result.dim() > 1 and _from_zero(given):
            units = result.movedim(self.axis, 0).flatten(1)
            self.units.append((self._layer, (units <= 0).all(1).cpu()))
            self.rectified = {place(result): result}  # the last alone: all are a graph
        elif name in _SQUASHERS and isinstance(result, Tensor):
            low, high = _SQUASHERS[name]
            near = ((result - low).abs() < _NEAR) | ((result - high).abs() < _NEAR)
            self.ends.append((self._layer, float(near.double().mean())))
            _larger(heard.saturated, self.ends[-1:])
            self.soft[place(result)] = result
        elif name in ("_softmax", "_safe_softmax"):
            self.soft[place(result)] = result
            self._over(given, result)
            if self.scores == result.numel():
                self.attends.add(place(result))
        elif name == "_log_softmax":
            twice = are_probabilities(given["self"], int(given["dim"]))
            heard.probabilities = "softmax" if twice else ""
            heard.across = place(given["self"]) in self.across
            heard.rectified = self.rectified.get(place(given["self"]))
            self._over(given, result)
        elif name == "log" and place(given["self"]) in self.across:
            self.across[place(result)] = result
        elif name == "bernoulli_" and isinstance(given.get("p"), float):
            self.mask = result, given["p"]
        elif name == "div_" and self.mask is not None and result is self.mask[0]:
            self._dropped(1 - self.mask[1])
        elif name == "native_dropout" and given.get("train") is not False:
            self._dropped(given["p"])
        elif name.startswith("_scaled_dot_product"):
            heard.attention.scaled(given)
        elif name.endswith("native_layer_norm") or name == "embedding":
            self.normed = True
        elif name in _NORMS:
            self._normalised(given)
        else:
            if name == "binary_cross_entropy_with_logits":
                heard.probabilities = "sigmoid" if self._squashed(given["self"]) else ""
                heard.rectified = self.rectified.get(place(given["self"]))
            elif name.startswith("nll_loss"):
                heard.across |= place(given["self"]) in self.across
            self._compared(name, given)
            heard.targets.note(name, given, result)

    def _compared(self, name: str, given: dict[str, Any]) -> None:
        """Predictions and targets; of those that a broadcast made a square, what it was made of."""
        outputs = set(self.outputs)
        if self.heard.last is not None:
            outputs.add(place(self.heard.last))
        if "target" in given or name in ("sub", "rsub"):
            shapes = outer(given, outputs)
            self.heard.squared = shapes or self.heard.squared
            if shapes is not None and "target" in given:
                given["target"] = narrow(given["target"])
        if "target" in given:
            self.heard.asked = given["target"]
            self.heard.direct = place(given["self"]) in outputs

    def _over(self, given: dict[str, Any], result: Tensor) -> None:
        """Note a softmax over the first dimension; of a square, as of pairs, both are right."""
        x = given["self"]
        if x.dim() > 1 and int(given["dim"]) % x.dim() == 0 and len(x) != x.shape[-1] > 1:
            self.across[place(result)] = result

    def _dropped(self, rate: float) -> None:
        """Note the rate of a dropout, which scales what it keeps."""
        if rate < 1:
            self.heard.dropout = max(self.heard.dropout, (rate, self._layer))

    def _normalised(self, given: dict[str, Any]) -> None:
        """By a batch norm, or by an instance norm, to which samples are channels of a single one.

        The gains of that are copied for each sample, those of a batch norm are a parameter.
        """
        self.normed, x, gain = True, given["input"], given.get("weight")
        if x.shape[0] > 1 or (gain is not None and place(gain) in self.names):
            trains = bool(given.get("training", given.get("train", False)))
            patches = max(x[0, 0].numel() // PATCH, 1)
            self.heard.batch_norms.append((x.shape[0] * patches, trains))

    def _product(self, name: str, given: dict[str, Any], result: Any) -> None:
        operands = [v for v in given.values() if isinstance(v, Tensor) and v.dim() > 1]
        named = [self.names.get(place(t)) for t in operands]
        self.scores = 0 if any(named) or "bmm" not in name else result.numel()
        if any(named):
            self._settle()
            _larger(self.heard.hidden, self.ends)
            self.ends.clear()
            self.axis = 1 if name == "convolution" else -1
            other = next((t for t, n in zip(operands, named, strict=True) if n is None), None)
            if other is not None and other.is_floating_point() and not self.normed:
                self._input(other)
            self.heard.last = result
            self.heard.order += [n for n in named if n and n not in self.heard.order]
            if result.is_floating_point():
                half = result.dtype in (torch.float16, torch.bfloat16)
                size = torch.linalg.vector_norm(result, dtype=torch.float32 if half else None)
                self.heard.scales[self._layer] = size / max(result.numel(), 1) ** 0.5
        elif name in ("bmm", "baddbmm") and operands and place(operands[0]) in self.attends:
            self.heard.attention.weights(self.soft[place(operands[0])])

    def _input(self, x: Tensor) -> None:
        """Take what the first product is given; of one that is constant, the next that varies."""
        known = self.heard.inputs
        if not self.heard.order:
            self.heard.inputs = Inputs.of(x, self.axis)
        elif known is not None and known.constant == known.columns and not self.drawn:
            found = Inputs.of(x, self.axis)
            if found is not None and 2 * found.constant <= found.columns:  # rounding varies few
                self.heard.inputs = found

    def _risk(self, name: str, given: dict[str, Any]) -> None:
        """How near an operation is to where it, or its slope, is not finite."""
        with unobserved():
            x = given.get("other" if name == "div" else "self")
            if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
                return
            least = float(-x.max()) if name == "exp" else float(x.abs().min())
            if name == "log" and place(x) in self.soft:
                name = "log of a softmax or sigmoid"
            self.heard.risks[name] = min(self.heard.risks.get(name, least), least)

    @property
    def _layer(self) -> str:
        """Of the last product, by its parameter."""
        return self.heard.order[-1].removesuffix(".weight") if self.heard.order else "the input"

    def _squashed(self, logits: Tensor) -> bool:
        """Whether a sigmoid gave these logits: they lie where it put them, between 0 and 1."""
        made = place(logits) in self.soft and logits.numel() > 0
        return made and bool((logits >= 0).all()) and bool((logits <= 1).all())

    def _settle(self) -> None:
        """Count the units that wait: they are some layer's."""
        table = self.heard.silent
        for layer, found in self.units:
            known = table.get(layer)
            table[layer] = found if known is None or known.shape != found.shape else known & found
        self.units.clear()


def _larger(table: dict[str, float], found: list[tuple[str, float]]) -> None:
    """Keep the largest share of each layer."""
    for layer, share in found:
        table[layer] = max(table.get(layer, 0.0), share)


def _from_zero(given: dict[str, Any]) -> bool:
    """Whether a rectifier's least value is 0: other clamps leave nothing silent."""
    return not any(given.get(bound, 0) for bound in ("min", "min_val", "threshold"))
