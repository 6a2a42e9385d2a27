"""Attention: how much its weights are spread, and how large its logits are."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LARGEST = 2**22  # weights that are looked at


@dataclass
class Attention:
    """Entropy of attention over that of uniform one, of the most concentrated call; its logits."""

    entropy: float = math.nan
    logit: float = math.nan
    calls: int = 0

    def scaled(self, given: dict[str, Any]) -> None:
        """Note a fused attention, of which queries and keys are known."""
        q, k, mask = given["query"], given["key"], given.get("attn_mask", given.get("attn_bias"))
        few = max(1, LARGEST // max(1, math.prod(q.shape[1:-1]) * k.shape[-2]))
        q, k = q[:few].float(), k[:few].float()
        if k.shape[1] != q.shape[1]:  # of grouped queries
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scale = given.get("scale") or q.shape[-1] ** -0.5
        logits = q @ k.mT * scale
        hidden = torch.zeros_like(logits, dtype=torch.bool)
        if given.get("is_causal"):
            hidden |= ~torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if isinstance(mask, Tensor):
            mask = mask[:few] if mask.dim() == q.dim() and len(mask) > few else mask
            bias = mask if mask.is_floating_point() else mask.new_zeros((), dtype=q.dtype)
            hidden |= (mask < -1e4) if mask.is_floating_point() else ~mask
            logits = logits + bias
        shown = logits.masked_fill(hidden, 0.0).abs().max()
        self.logit = max(self.logit, float(shown)) if self.calls else float(shown)
        self.weights(logits.masked_fill(hidden, -math.inf).softmax(-1), ~hidden)

    def weights(self, weights: Tensor, shown: Tensor | None = None) -> None:
        """Note weights (..., queries, keys); keys with a weight of zero may be hidden."""
        p = weights.detach().float()
        count = (p > 0 if shown is None else shown).sum(-1)
        spread = -(p * p.clamp_min(1e-30).log()).sum(-1)[count > 1] / count[count > 1].log()
        if spread.numel():
            mean = float(spread.mean())
            self.entropy = min(self.entropy, mean) if self.calls else mean
            self.calls += 1
