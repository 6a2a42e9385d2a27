"""A recording: which operations one evaluation of the loss ran, and which used whose output."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

LINEAR = ("linear", "conv1d", "conv2d", "conv3d")


@dataclass(frozen=True)
class Operation:
    """One call: values are numbered in the order they appear; in-place results get a new number."""

    name: str  # linear, conv2d, relu, batch_norm, cross_entropy, ...
    arguments: tuple[Any, ...]  # of the call, tensors included
    keywords: dict[str, Any]
    inputs: tuple[int, ...]  # values it read
    output: int  # value it made

    def argument(self, position: int, keyword: str, default: Any = None) -> Any:
        """The argument given at `position` or as `keyword`."""
        if len(self.arguments) > position:
            return self.arguments[position]
        return self.keywords.get(keyword, default)


@dataclass
class Recording:
    """Operations in order; `uses[v]` lists the operations that read value v."""

    parameters: dict[int, str]  # value number -> parameter name
    operations: list[Operation] = field(default_factory=list)
    uses: dict[int, list[Operation]] = field(default_factory=dict)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    values: dict[int, int] = field(default_factory=dict)  # id of tensor -> value number

    def parameter(self, tensor: Any) -> str | None:
        """Name of the parameter that `tensor` is; None if it is none."""
        return self.parameters.get(self.values.get(id(tensor), -1))

    def weights(self, operation: Operation) -> tuple[str, ...]:
        """Names of a linear map's weight and bias, where they are parameters of their own."""
        if operation.name not in LINEAR:
            return ()
        tensors = (operation.argument(1, "weight"), operation.argument(2, "bias"))
        names = [self.parameter(t) for t in tensors if isinstance(t, Tensor)]
        return tuple(n for n in names if n) if all(names) else ()

    def only_use(self, value: int) -> Operation | None:
        """The operation that reads `value`, when there is just one."""
        uses = self.uses.get(value, [])
        return uses[0] if len(uses) == 1 else None

    def used_once(self, names: tuple[str, ...]) -> bool:
        """Whether each of these parameters enters one operation only."""
        counts = Counter(name for v, name in self.parameters.items() for _ in self.uses.get(v, []))
        return all(counts[name] == 1 for name in names)


class _Recorder(TorchFunctionMode):
    def __init__(self, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.recording = Recording(parameters={})
        self.kept: list[Tensor] = []  # keeps ids valid
        for name, tensor in params.items():
            self.recording.parameters[self._value(tensor)] = name

    def _value(self, tensor: Tensor, new: bool = False) -> int:
        values = self.recording.values
        if new or id(tensor) not in values:
            values[id(tensor)] = len(self.kept)
            self.kept.append(tensor)
            self.recording.shapes[values[id(tensor)]] = tuple(tensor.shape)
        return values[id(tensor)]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inputs = tuple(self._value(tensor) for tensor in read)
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        name = getattr(func, "__name__", str(func))
        for tensor in made:
            operation = Operation(name, args, kwargs, inputs, self._value(tensor, new=True))
            self.recording.operations.append(operation)
            for value in dict.fromkeys(inputs):
                self.recording.uses.setdefault(value, []).append(operation)
        return result


def layer_name(parameter: str) -> str:
    """`features.3` for `features.3.weight`."""
    return parameter.rpartition(".")[0] or parameter


def record(
    loss: Callable[[dict[str, Tensor]], Tensor], params: Mapping[str, Tensor]
) -> tuple[Recording, Any]:
    """Evaluate `loss(params)` and return what ran; the second value keeps the tensors alive."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    recorder = _Recorder(leaves)
    with recorder:
        loss(leaves)
    return recorder.recording, recorder.kept
