"""Mends: what could be changed at the layers that break a symmetry, tried where it can be."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from eqtoolbox.symmetry.actions.action import dihedral, flip, quarter_turn
from eqtoolbox.symmetry.causes import Kind
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.culprit import Culprit, culprit
from eqtoolbox.symmetry.structure import Tree, tensors

_MOST = 16  # layers that are mended one after the other
_CENTRED = (quarter_turn, dihedral, flip)
_TIED = "eqtoolbox.enforce.tied(model, claim, sample)"
_AVERAGED = "eqtoolbox.enforce.averaged(model, claim, sample)"
_CANNOT = (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError)


@dataclass(frozen=True, kw_only=True)
class Mend:
    """A layer that breaks a claim, why, and what would mend it."""

    claim: str
    layer: str
    cause: str
    words: str  # what to do
    code: str = ""  # that does it; "" where the network must be built anew
    tried: bool = False  # on a copy, where this layer then broke nothing

    def __str__(self) -> str:
        done = " (tried: then it breaks nothing)" if self.tried else ""
        return f"{self.claim}, {self.layer}: {self.words}{done}"


def mends(model: nn.Module, inputs: Tree, claim: Equivariance, first: Culprit) -> Iterator[Mend]:
    """What breaks the claim, layer by layer: each is mended on a copy, to find the next.

    Args:
        model: left as it is.
        inputs: a few samples.
        claim: that the data allow.
        first: its culprit.
    """
    found, tried = first, copy.deepcopy(model).eval()
    for _ in range(_MOST):
        if found.layer is None:
            return
        here, cause = found.layer, found.cause
        module = dict(tried.named_modules()).get(here)
        words, code, change = _mend(module, here, found.kind, claim, inputs)
        done = False
        if change is not None and module is not None:
            try:
                change(module)
                found = culprit(tried, inputs, claim)
                done = found.layer != here
            except _CANNOT:
                pass
        yield Mend(claim=claim.name, layer=here, cause=cause, words=words, code=code, tried=done)
        if not done:
            return


_Rule = tuple[str, str, Callable[[Any], None] | None]  # words, code, the change on a copy


def _mend(module: Any, layer: str, kind: Kind, claim: Equivariance, inputs: Tree) -> _Rule:
    """By the kind of the cause, most specific first."""
    at = f'model.get_submodule("{layer}")'
    grid = any(x.dim() > 2 for x in tensors(inputs))
    if grid and (kind == "row" or isinstance(module, nn.Flatten | nn.Linear)):
        return "pool over all places before it, such as nn.AdaptiveAvgPool2d(1)", "", None
    if kind == "padding":
        code = f'{at}.padding_mode = "circular"'
        return "padding_mode='circular'", code, lambda m: setattr(m, "padding_mode", "circular")
    if kind == "unread":
        return "an input of the size that its cause names, or stride 1", "", None
    if kind == "stride":
        return "stride 1, or a low-pass (blur) before the stride", "", None
    if isinstance(module, nn.Linear) and claim.group.order is not None:
        return f"tie its weights, {_TIED}", _TIED, None
    if kind == "kernel" and claim.input_action in _CENTRED:
        return f"tie its kernel, {_TIED}", _TIED, lambda m: _symmetric(m, claim)
    if kind == "position":
        return "leave the positional embedding out, or move it with the entries", "", None
    if kind == "constant" and getattr(module, "bias", None) is not None:
        return "leave the bias out", f"{at}.bias = None", lambda m: setattr(m, "bias", None)
    return f"average over the group, {_AVERAGED}", _AVERAGED, None


def _symmetric(module: Any, claim: Equivariance) -> None:
    """The mean of the kernel over the group: what a tied one is to a channel that stays."""
    with torch.no_grad():
        moved = [claim.input_action(g, module.weight) for g in claim.group.elements()]
        module.weight.copy_(torch.stack(moved).mean(0))
