"""Constants: the linear maps between a vector that is added somewhere and the biases after them."""

from collections.abc import Iterator
from dataclasses import dataclass

from eqtoolbox.weights.forms.maps import Map, Reader
from eqtoolbox.weights.tracing.trace import Node, Trace, Value

_LONGEST = 4  # maps between two biases


_CARRIES = {
    "view", "_unsafe_view", "reshape", "transpose", "permute", "t", "clone", "expand", "unsqueeze",
    "squeeze", "alias", "detach", "split", "split_with_sizes", "chunk", "select", "unbind", "slice",
    "mean", "cat", "add", "dropout", "native_dropout", "bmm", "_to_copy", "contiguous",
}  # fmt: skip
_PRODUCTS = ("mm", "bmm", "addmm", "mul")


@dataclass(frozen=True)
class Uses:
    """Who reads and who makes every value of a trace, and which values are parameters."""

    readers: dict[int, list[Node]]
    makers: dict[int, Node]
    names: dict[int, str]

    @classmethod
    def of(cls, trace: Trace) -> "Uses":
        """Those that the loss depends on."""
        nodes = trace.live(trace.loss)
        readers: dict[int, list[Node]] = {}
        for node in nodes:
            for value in node.inputs:
                readers.setdefault(value.number, []).append(node)
        makers = {o.number: n for n in nodes for o in n.outputs if o is not None}
        return cls(readers, makers, {v.number: n for n, v in trace.parameters.items()})

    def matrix(self, value: object) -> tuple[str, bool] | None:
        """Name of the matrix that a value is, and whether it is transposed; None of other shapes.

        Looked through are what makes a matrix a batch of equal ones and back.
        """
        turned = False
        while isinstance(value, Value):
            if value.number in self.names:
                return (self.names[value.number], turned) if len(value.shape) == 2 else None
            maker = self.makers.get(value.number)
            if maker is None or maker.name not in ("t", "transpose", "expand", "view", "unsqueeze"):
                return None
            inner = maker.args[0]
            if (
                maker.name in ("view", "expand", "unsqueeze")
                and inner.shape[-2:] != value.shape[-2:]
            ):
                return None
            turned ^= maker.name in ("t", "transpose")
            value = inner
        return None


def readers(uses: Uses, start: Value) -> Iterator[Reader]:
    """Biases that a constant added to a value reaches through linear maps by parameters.

    Whether it reaches nothing else, and reaches them whole, is for the gradient to say.
    """
    seen: set[tuple[int, tuple[Map, ...]]] = set()
    waiting: list[tuple[Value, tuple[Map, ...], float]] = [(start, (), 1.0)]
    while waiting:
        here, maps, factor = waiting.pop()
        for node in uses.readers.get(here.number, []):
            after, times = maps, factor
            if node.name in _PRODUCTS and (found := _map(uses, node, here)) is not None:
                after = (*maps, found)
            elif node.name in ("mul", "div") and isinstance(node.args[1], (int, float)):
                times = factor * node.args[1] if node.name == "mul" else factor / node.args[1]
            elif node.name not in _CARRIES:
                continue
            if after and (bias := _bias(uses, node, here)) is not None:
                yield Reader(after, bias, times)
                continue
            for output in node.outputs:
                if output is None or (output.number, after) in seen or len(after) > _LONGEST:
                    continue
                seen.add((output.number, after))
                waiting.append((output, after, times))


def _map(uses: Uses, node: Node, here: Value) -> Map | None:
    """What a product by a parameter does to a constant along the last axis."""
    first, second = node.args[1:3] if node.name == "addmm" else node.args[:2]
    if not isinstance(second, Value) or not isinstance(first, Value):
        return None
    if node.name == "mul":
        other = second if first.number == here.number else first
        name = uses.names.get(other.number)
        return Map(name, "diagonal") if name and len(other.shape) == 1 else None
    if first.number != here.number:
        return None
    found = uses.matrix(second)
    return Map(found[0], "rows" if found[1] else "columns") if found else None


def _bias(uses: Uses, node: Node, here: Value) -> str | None:
    """The parameter that an operation adds to what it makes of the value."""
    if node.name == "addmm":
        return uses.names.get(node.args[0].number)
    if node.name == "add":
        first, second = node.args[:2]
        other = second if isinstance(first, Value) and first.number == here.number else first
        if isinstance(other, Value) and len(other.shape) == 1:
            return uses.names.get(other.number)
    return None
