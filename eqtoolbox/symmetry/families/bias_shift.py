"""Bias shift: a bias that only linear maps read, moved into the biases after these maps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eqtoolbox.symmetry.parameter import ContinuousSymmetry, Parameters
from eqtoolbox.symmetry.search.trace import Node, Trace, Value


@dataclass(frozen=True)
class Reader:
    """A linear map x W + b that reads the shifted value."""

    weight: str
    inner: int  # axis of the weight that is summed over
    bias: str

    def of(self, weight: Tensor, vector: Tensor) -> Tensor:
        """What the vector u adds to the map's result."""
        matrix = weight if self.inner == 1 else weight.mT
        return matrix @ vector.to(weight)

    def back(self, weight: Tensor, cotangent: Tensor) -> Tensor:
        """The transpose of `of` for the same weight."""
        matrix = weight if self.inner == 0 else weight.mT
        return matrix @ cotangent.to(weight)


@dataclass(frozen=True, kw_only=True)
class BiasShift(ContinuousSymmetry):
    """b -> b + u, b_o -> b_o - W_o u for every reader: K depends on W_o, no Q.

    Value bias against output bias (rows of attention sum to one), bias of a normalisation against
    the biases of what reads it, biases of a deep linear network.

    References:
        Yang & Ziyin 2025 (arXiv 2512.21447).
    """

    family: ClassVar[str] = "bias_shift"
    source: str
    offset: int  # first entry of the source that moves; `dimension` of them do
    readers: tuple[Reader, ...]

    @property
    def names(self) -> tuple[str, ...]:
        weights = [r.weight for r in self.readers]
        return tuple(dict.fromkeys([self.source, *(r.bias for r in self.readers), *weights]))

    @property
    def charges(self) -> int:
        return 0

    def tangent(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        total = {n: torch.zeros_like(params[n]) for n in self.names}
        whole = torch.zeros_like(params[self.source])
        end = self.offset + self.dimension
        whole[self.offset : end] = coefficients.to(whole)
        total[self.source] = total[self.source] + whole
        for r in self.readers:
            total[r.bias] = total[r.bias] - r.of(params[r.weight], coefficients)
        return total

    def transform(self, params: Parameters, coefficients: Tensor) -> dict[str, Tensor]:
        return {n: params[n] + k for n, k in self.tangent(params, coefficients).items()}

    def pullback(self, coefficients: Tensor, cotangent: Parameters) -> dict[str, Tensor]:
        total = {n: torch.zeros_like(cotangent[n]) for n in self.names}
        for r in self.readers:
            u = coefficients.to(cotangent[r.bias])
            outer = torch.outer(cotangent[r.bias], u)
            total[r.weight] = total[r.weight] - (outer if r.inner == 1 else outer.mT)
        return total

    def slopes(self, params: Parameters, cotangent: Parameters) -> Tensor:
        end = self.offset + self.dimension
        pulled = sum(r.back(params[r.weight], cotangent[r.bias]) for r in self.readers)
        return (cotangent[self.source][self.offset : end] - pulled).double()

    def lengths(self, params: Parameters) -> Tensor:
        totals: dict[str, Tensor] = {}
        for r in self.readers:
            moved = params[r.weight] if r.inner == 1 else params[r.weight].mT
            totals[r.bias] = totals.get(r.bias, 0) + moved.double()
        return torch.stack([t.square().sum(0) for t in totals.values()]).sum(0).add(1).sqrt()

    def pairing(self, params: Parameters, direction: Parameters) -> Tensor:
        return params[self.source].new_zeros(0, dtype=torch.float64)

    def charge(self, params: Parameters) -> Tensor:
        return self.pairing(params, params)

    def charge_scale(self, params: Parameters) -> Tensor:
        return self.pairing(params, params)

    def finite_step(self, direction: Parameters) -> Tensor:
        return self.pairing(direction, direction)


_CARRIES = {
    "view", "_unsafe_view", "reshape", "transpose", "permute", "t", "clone", "expand", "unsqueeze",
    "squeeze", "alias", "detach", "split", "split_with_sizes", "chunk", "select", "unbind", "slice",
    "bmm", "mean", "cat", "add", "dropout", "native_dropout",
}  # fmt: skip


def propose_bias_shifts(
    trace: Trace, params: Mapping[str, Tensor], gradient: Mapping[str, Tensor]
) -> Iterator[BiasShift]:
    """Vectors whose gradient is W_o^T of the gradient of the biases after them, to rounding."""
    nodes = trace.live(trace.loss)
    names = {v.number: n for n, v in trace.parameters.items()}
    makers = {o.number: n for n in nodes for o in n.outputs if o is not None}
    uses: dict[int, list[Node]] = {}
    for node in nodes:
        for value in node.inputs:
            uses.setdefault(value.number, []).append(node)
    for name, value in trace.parameters.items():
        if len(value.shape) != 1 or len(uses.get(value.number, [])) != 1:
            continue
        made = uses[value.number][0].outputs[0]
        if made is None:
            continue
        readers = tuple(_readers(made, uses, makers, names))
        widths = {trace.parameters[r.weight].shape[r.inner] for r in readers}
        if len(widths) != 1 or name in {r.bias for r in readers}:
            continue
        width = widths.pop()
        pulled = sum(r.back(params[r.weight], gradient[r.bias]) for r in readers)
        for offset in range(0, value.shape[0] - width + 1, width):
            own = gradient[name][offset : offset + width]
            if float((own - pulled).norm()) <= 1e-6 * float(own.norm()):
                yield BiasShift(
                    name=name, dimension=width, source=name, offset=offset, readers=readers
                )


def _readers(
    value: Value, uses: dict[int, list[Node]], makers: dict[int, Node], names: dict[int, str]
) -> Iterator[Reader]:
    """Linear maps with a bias that the value reaches through what carries constants along."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        here = waiting.pop()
        for node in uses.get(here.number, []):
            if node.name == "addmm" and node.args[1].number == here.number:
                weight, bias = node.args[2], node.args[0]
                inner = 0
                if makers.get(weight.number) is not None and makers[weight.number].name == "t":
                    weight, inner = makers[weight.number].args[0], 1
                if weight.number in names and bias.number in names:
                    yield Reader(names[weight.number], inner, names[bias.number])
            elif node.name in _CARRIES:
                for output in node.outputs:
                    if output is not None and output.number not in seen:
                        seen.add(output.number)
                        waiting.append(output)
