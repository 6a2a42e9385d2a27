"""Flat directions outside the catalogue: generators that depend on other parameters.

Each is exact and known; what they leave of the Jacobian's nullspace is what discovery must find.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Directions = Iterator[Parameters]


def units(tensor: Tensor) -> Iterator[Tensor]:
    """One entry each."""
    for k in range(tensor.numel()):
        one = torch.zeros_like(tensor)
        one.view(-1)[k] = 1.0
        yield one


def after_mean(p: Parameters, norm: str, weight: str, bias: str) -> Directions:
    """LayerNorm's result has no mean: W + u (1/gain)^T, b - u sum(offset / gain), any u."""
    gain, offset = p[f"{norm}.weight"], p[f"{norm}.bias"]
    for u in units(p[bias]):
        yield {weight: torch.outer(u, 1 / gain), bias: -u * (offset / gain).sum()}


def turned_stream(
    p: Parameters, writers: list[str], columns: list[str], readers: list[tuple[str, ...]]
) -> Directions:
    """A stream that only normalisations read, turned (QuaRot): readers W -> W G R^T G^-1.

    Turns are those that keep the mean's direction where a normalisation takes it away.

    Args:
        writers: parameters with the stream along their first axis.
        columns: along their last axis.
        readers: (norm, weight, bias or nothing): G is the norm's gain.
    """
    width = p[f"{readers[0][0]}.weight"].shape[0]
    centred = f"{readers[0][0]}.bias" in p
    first = torch.ones(width, 1, dtype=torch.float64) if centred else torch.zeros(width, 0)
    generator = torch.Generator().manual_seed(0)
    rest = torch.randn(width, width - first.shape[1], generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([first, rest], 1))[0][:, first.shape[1] :]
    for i, j in torch.combinations(torch.arange(basis.shape[1])):
        turn = torch.outer(basis[:, i], basis[:, j])
        turn = turn - turn.mT
        moved = {n: (turn @ p[n].flatten(1)).view_as(p[n]) for n in writers if p[n].dim() > 1}
        moved |= {n: turn @ p[n] for n in writers if p[n].dim() == 1}
        moved |= {n: p[n] @ turn.mT for n in columns}
        for norm, weight, *bias in readers:
            gain = p[f"{norm}.weight"]
            change = -p[weight] @ (gain[:, None] * turn / gain)
            moved[weight] = change
            for b in bias:
                moved[b] = -change @ p[f"{norm}.bias"]
        yield moved


def unseen_by_the_head(p: Parameters, weight: str, after: Tensor) -> Directions:
    """Rows that no class tells apart: W + n w^T, with H n constant for what comes after, H."""
    for n in _kernel(after - after.mean(0)):
        for w in units(p[weight][0]):
            yield {weight: torch.outer(n, w)}


def merged_adapter(p: Parameters) -> Directions:
    """A trained base takes up what the adapter loses: W - d(B A)."""
    for b in units(p["b.weight"]):
        yield {"b.weight": b, "w.weight": -b @ p["a.weight"]}
    for a in units(p["a.weight"]):
        yield {"a.weight": a, "w.weight": -p["b.weight"] @ a}


def _kernel(matrix: Tensor) -> Tensor:
    """Orthonormal rows that the matrix sends to zero."""
    _, values, right = torch.linalg.svd(matrix)
    return right[int((values > 1e-12 * values[0]).sum()) :]


def of_convnext(p: Parameters) -> Directions:
    yield from after_mean(p, "n", "a.weight", "a.bias")
    yield from unseen_by_the_head(p, "b.weight", p["h.weight"] * p.get("scale", 1.0))


def of_patches(p: Parameters) -> Directions:
    attention, first, last = "t.self_attn", ("t.norm1", "t.norm2"), ("n", "h.weight", "h.bias")
    inner = (
        (first[0], f"{attention}.in_proj_weight", f"{attention}.in_proj_bias"),
        (first[1], "t.linear1.weight", "t.linear1.bias"),
    )
    for reader in inner:
        yield from after_mean(p, *reader)
    if "n.weight" not in p:  # the stream's mean, moved between the biases that are added to it
        one = torch.ones_like(p["p.bias"])
        yield {"p.bias": one, "t.linear2.bias": -one}
        yield {"t.self_attn.out_proj.bias": one, "t.linear2.bias": -one}
        return
    yield from after_mean(p, *last)
    layers = ("p", f"{attention}.out_proj", "t.linear2")
    writers = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    yield from turned_stream(p, writers, ["pos"], [*inner, last])


def of_rotary(p: Parameters) -> Directions:
    norms = {"n1": "qkv", "n2": ("gate", "up"), "n3": "h"}
    readers = [(n, f"{w}.weight") for n, weights in norms.items() for w in weights]
    yield from turned_stream(p, ["o.weight", "down.weight"], ["e.weight"], readers)


BEYOND: dict[str, Callable[[Parameters], Directions]] = {
    "deep linear": lambda p: unseen_by_the_head(p, "0.weight", p["2.weight"] @ p["1.weight"]),
    "convnext": of_convnext,
    "convnext with layer scale": of_convnext,
    "convnext: GELU on the stream": lambda p: after_mean(p, "n", "a.weight", "a.bias"),
    "lora with its base": merged_adapter,
    "vision transformer": of_patches,
    "vision transformer: softplus for the last normalisation": of_patches,
    "rotary": of_rotary,
    "rotary: clamp on what is gated": of_rotary,
}
