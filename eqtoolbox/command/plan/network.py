"""A network as a plan sees it: parameters, and how many numbers one evaluation saves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from eqtoolbox.replay.tree import map_tensors

ASPECT = 128  # width over depth of a usual transformer, and width of a head


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a network has, and what autograd saves in one evaluation on a rank's batch."""

    parameters: float  # N
    block: float  # parameters of the largest block, which sharded training gathers at once
    module: float  # of the largest module, which an exact product gathers at once
    saved: float  # numbers saved, attention in one piece
    kept: float  # of these, where blocks keep their inputs only: and those of one block
    squares: float  # numbers saved beside them where attention is not in one piece
    operations: float  # floating point operations of a forward

    @classmethod
    def usual(cls, parameters: float, samples: int = 1, tokens: int = 2048) -> "Network":
        """A transformer of the usual shape, of width d = 128 L in L layers: N = 12 L d^2.

        A token saves 16 d numbers a layer (two inputs of normalisations and of what follows them,
        queries, keys, values, the output of attention, 4 d before and after the activation), and
        T d / 128 where the T x T weights of every head are saved, too. Tables of tokens are not
        counted.

        Args:
            parameters: N.
            samples: of a rank's batch.
            tokens: T, of a sample.

        Reference:
            Korthikanti et al. 2022, Reducing activation recomputation (arXiv 2205.05198), without
            dropout.

        Example:
            >>> usual = Network.usual(7e9)
            >>> round(usual.block / 1e6), round(usual.saved / 1e9, 1)
            (212, 4.5)
        """
        layers = max(1, round((parameters / (12 * ASPECT**2)) ** (1 / 3)))
        width = (parameters / (12 * layers)) ** 0.5
        positions = samples * tokens
        return cls(
            parameters=parameters,
            block=12 * width**2,
            module=4 * width**2,
            saved=positions * layers * 16 * width,
            kept=positions * (layers + 16) * width,
            squares=positions * layers * tokens * width / ASPECT,
            operations=2 * parameters * positions,
        )

    @classmethod
    def of(cls, model: nn.Module, batch: Any, loss: Callable[..., Tensor] | None) -> "Network":
        """Counted on the meta device, where nothing is computed.

        Args:
            model: may be on the meta device already.
            batch: of one rank.
            loss: of (model, batch); None for the model's own outputs.
        """
        model = model.to("meta")
        batch = map_tensors(lambda x: x.to("meta"), batch)
        own = {m: sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()}
        blocks = [m for part in model.modules() if isinstance(part, _LISTS) for m in part]
        sizes = [sum(p.numel() for p in m.parameters()) for m in blocks]
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        found: dict[int, float] = {}

        def pack(x: Tensor) -> Tensor:
            if x.untyped_storage()._cdata not in weights:
                found[x.untyped_storage()._cdata] = x.untyped_storage().nbytes() / x.itemsize
            return x

        inputs: list[Any] = []
        ears = [m.register_forward_pre_hook(lambda _, x: inputs.append(x)) for m in blocks]
        listening = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        counter = FlopCounterMode(display=False)
        with torch.enable_grad(), counter, _InOnePiece() as attention, listening:
            held = _outputs(model, batch) if loss is None else loss(model, batch)
        for ear in ears:
            ear.remove()
        del held  # alive until here, so that no storage was used twice
        saved = sum(found.values())
        streams = sum(x[0].numel() for x in inputs if x and isinstance(x[0], Tensor))
        layers = max(len(blocks), 1)
        return cls(
            parameters=float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
            block=float(max(sizes, default=sum(own.values()))),
            module=float(max(own.values())),
            saved=saved,
            kept=min(saved, streams + saved / layers),
            squares=attention.weights,
            operations=float(counter.get_total_flops()),
        )


def _outputs(model: nn.Module, batch: Any) -> Any:
    """Of a batch as datasets give it: by name, with targets behind the inputs, or alone."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


_LISTS = (nn.Sequential, nn.ModuleList)


class _InOnePiece(TorchFunctionMode):
    """Attention saves queries, keys, values and its output, as one kernel does it on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = 0.0  # numbers of all T x T matrices

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = (*args, *((kwargs or {}).values()))[:3]
        self.weights += q.numel() // q.shape[-1] * k.shape[-2]
        return _Attention.apply(q, k, v)  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    """A stand-in with the shapes of attention."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        *batch, heads, tokens, _ = (1, *q.shape)[-4:] if q.dim() < 3 else q.shape
        out = q.new_empty(*batch, tokens, heads, v.shape[-1]).transpose(-3, -2)  # as kernels do
        out = out.reshape(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _ = ctx.saved_tensors
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
