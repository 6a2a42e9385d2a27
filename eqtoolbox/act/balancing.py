"""Balance: the live parameters moved to the least-norm point of their orbit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eqtoolbox.act.balanced import Balanced
from eqtoolbox.act.function import LiveFunction
from eqtoolbox.act.motion import path_of
from eqtoolbox.act.optimizer_state import refuse_other_models
from eqtoolbox.act.transaction import carry_out, live
from eqtoolbox.expect.checked import checked
from eqtoolbox.linalg.curvature import hessian
from eqtoolbox.linalg.lanczos import top_eigenpairs
from eqtoolbox.replay.objective import LossFunction
from eqtoolbox.replay.unwrap import optimizers_in
from eqtoolbox.weights.discovery import default_loss, discover
from eqtoolbox.weights.orbit.canonical import GroupElement, canonical
from eqtoolbox.weights.parameter import ContinuousSymmetry
from eqtoolbox.weights.search.found import Found

FAR = 2.0  # norm^2 over that of the point, beyond which symmetries are looked for again there
LOOKS = 3  # for symmetries at most
KEPT = 1e-9  # relative change in float64 of a function that is kept
APPROXIMATELY = 1e-2  # by a symmetry that holds up to an epsilon
FLOORS = 3.0  # up to which outputs count as the same
SETTLED = 1e-6  # imbalance of a point that is the least-norm point
Taken = tuple[ContinuousSymmetry, GroupElement]
PAIRS = 5  # eigenvalues whose ratio is the conditioning


@checked
def balance(
    model: nn.Module,
    batch: Any,
    optimizer: Any = None,
    *,
    loss_fn: LossFunction | None = None,
    keep: Literal["function", "loss"] = "function",
    families: Sequence[str] | None = None,
    approximate: bool = False,
    curvature: bool = True,
) -> Balanced:
    """Move a model in place to the least-norm point of its orbit: the same function, in balance.

    Every verified symmetry of the parameters (rescaling of units, GL(d) of heads, rotary pairs,
    bias shifts and others that `eqtoolbox.weights.discover` finds) is taken to the minimum of
    |theta|^2 along it, where |in_i| = |out_i| for every unit. From anywhere on the orbit this is
    the same point. Running statistics, `.grad` and the state of the optimizer move along.

    **This repairs weights that are far out of balance; it does not make a training faster.** At
    the default initialisation of an MLP it *raises* the sharpness (0.355 to 0.447), and amid a
    training with Adam it left a higher loss than doing nothing (0.159 against 0.098). Copies of
    the parameters elsewhere, such as averages (EMA), are not known here and do not move.

    Args:
        model: trained or not, in training or evaluation mode.
        batch: what `loss_fn` takes; see `eqtoolbox.weights.discover`.
        optimizer: one or several of the model's, whose state is moved along.
        loss_fn: (model, batch) -> scalar; None: see `eqtoolbox.weights.discover`.
        keep: "function": only what keeps the model's outputs in training and evaluation mode,
            which is measured. "loss": also what changes them and keeps the loss, as the constant
            that a softmax ignores does (47 % of the logits in one case).
        families: only these. None: all but `scale`, which sets weights before a normalisation to
            norm one, and by that changes the effective learning rate.
        approximate: also symmetries that hold up to the epsilon of a normalisation.
        curvature: measure the sharpness before and after, with some 100 Hessian products each.

    Returns:
        What moved, how far, and what it made of norm, sharpness and conditioning, worse or better.

    Raises:
        ValueError: nothing to balance, or no minimum is reached, or outputs changed by more than
            three floors; nothing is changed then.
        TypeError: a model or optimizer of a kind that cannot be moved.

    Reference:
        Kempf & Ness 1979; Stock et al. 2019, Equi-normalization (arXiv 1902.10416).

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = torch.randn(16, 4), torch.arange(16) % 3
        >>> with torch.no_grad():
        ...     net[0].weight[0] *= 100
        >>> found = balance(net, data, curvature=False)
        >>> found.families, found.norm_after < found.norm_before / 10
        (('rescale',), True)
        >>> bool((net[0].weight[0].norm() < 10))
        True
    """
    inner = live(model)
    own = dict(inner.named_parameters())
    if optimizer is not None:
        refuse_other_models(optimizers_in(optimizer), own)
    function = LiveFunction.of(inner, batch, default_loss if loss_fn is None else loss_fn)
    found = discover(inner, batch, loss_fn)
    with function.objective.isolated():
        now, path, rounds = function.exact, list[Taken](), 0
        for _ in range(LOOKS):
            chosen, out = _chosen(found, families, approximate)
            if keep == "function":
                chosen, changing = keeping(chosen, replace(function, params=now))
                out |= changing
            if not chosen:
                raise ValueError(f"nothing to balance: {_because(out, found.notes)}")
            point = canonical(chosen, now, limits=False)
            if not point.imbalance <= SETTLED:
                raise ValueError(
                    f"no least-norm point within {point.rounds} rounds: an imbalance of "
                    f"{point.imbalance:.0e} is left; give fewer families than {_families(chosen)}"
                )
            path, rounds = path + list(point.path), rounds + point.rounds
            far, now = _norm(now) > FAR * _norm(point.params), point.params
            if not far:
                break
            found = discover(inner, batch, loss_fn, at=now)  # rounding hides some from far away
        motion = path_of(path)
        moved = {n: now[n] for n in motion.names}
        there = function.there(moved)
        change = there.change(function, keep)
        floor = max(f.floor(rounds) for f in (function, there))
        if not approximate and not change <= FLOORS * floor:
            raise ValueError(
                f"the {keep} would change by {change:.1e}, more than {FLOORS:.0f} floors of "
                f"{floor:.1e}: nothing was changed; balance in float64"
            )
        nan = (math.nan, math.nan)
        spectra = [_spectrum(f) if curvature else nan for f in (function, there)]
    norms = [_norm(f.params) for f in (function, there)]
    said = f"norm^2 {norms[0]:.4g} to {norms[1]:.4g} along {', '.join(_families(chosen))}"
    carry_out(
        model, motion, optimizer, act="balance", said=said, params=moved, buffers=there.buffers
    )
    return Balanced(
        families=_families(chosen),
        keep=keep,
        norm_before=norms[0],
        norm_after=norms[1],
        sharpness_before=spectra[0][0],
        sharpness_after=spectra[1][0],
        conditioning_before=spectra[0][1],
        conditioning_after=spectra[1][1],
        change=change,
        floor=floor,
        rounds=rounds,
        imbalance=point.imbalance,
        left=dict(point.left),
        out=out,
    )


def _chosen(
    found: Found, families: Sequence[str] | None, approximate: bool
) -> tuple[list[ContinuousSymmetry], dict[str, str]]:
    """Those to balance, and why not the others."""
    usable = [s for s in found if isinstance(s, ContinuousSymmetry) and not s.equivariant]
    usable = [s for s in usable if s.status != "broken"]
    known = {s.family for s in usable}
    if families is not None and (unknown := [f for f in families if f not in known]):
        raise ValueError(f"expected families among {sorted(known)}, got {', '.join(unknown)}")
    chosen, out = [], dict[str, str]()
    for s in usable:
        if families is not None and s.family not in families:
            continue
        why = _why_not(s, families is not None, approximate)
        if why:
            out[_called(s)] = why
        else:
            chosen.append(s)
    return chosen, out


def _why_not(symmetry: ContinuousSymmetry, named: bool, approximate: bool) -> str:
    if symmetry.form.balance is None:
        return symmetry.form.unbalanced
    if symmetry.form.balance == "norm one" and not named:
        return f"changes the effective learning rate: name {symmetry.family!r} in families"
    if symmetry.status == "approximate" and not approximate:
        return f"holds up to {symmetry.residual:.0e} only: give approximate=True"
    if symmetry.status not in ("verified", "approximate"):
        return f"{symmetry.status}: no evidence on this batch"
    return ""


def keeping(
    symmetries: Sequence[ContinuousSymmetry], function: LiveFunction
) -> tuple[list[ContinuousSymmetry], dict[str, str]]:
    """Those that keep the function in both modes, at a random element, and why not the others."""
    generator, kept, out = torch.Generator().manual_seed(0), [], dict[str, str]()
    for s in symmetries:
        draw = torch.randn(s.dimension, generator=generator, dtype=torch.float64)
        device = function.params[s.names[0]].device
        changes = function.changes(s.transform(function.exact, (s.strength * draw).to(device)))
        worst = max(changes, key=lambda mode: changes[mode])
        if changes[worst] <= (APPROXIMATELY if s.status == "approximate" else KEPT):
            kept.append(s)
        else:
            out[_called(s)] = f"changes the outputs in {worst} mode"
    return kept, out


def _because(out: Mapping[str, str], notes: Sequence[str]) -> str:
    reasons = [f"{name} {why}" for name, why in out.items()] or ["no symmetry was found", *notes]
    return "; ".join(reasons[:5])


def _called(symmetry: ContinuousSymmetry) -> str:
    return f"{symmetry.family} ({symmetry.name})"


def _families(symmetries: Sequence[ContinuousSymmetry]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(s.family for s in symmetries))


def _norm(params: Mapping[str, Tensor]) -> float:
    return sum(float(p.double().square().sum()) for p in params.values())


def _spectrum(function: LiveFunction) -> tuple[float, float]:
    """Largest eigenvalue of the Hessian, and its ratio to the fifth-largest."""
    with hessian(function.objective, function.params) as operator:
        pairs = min(PAIRS, sum(p.numel() for p in function.params.values()))
        values = top_eigenpairs(operator, pairs, tol=1e-2, until="values").values
    last = float(values[-1])
    return float(values[0]), float(values[0]) / last if last > 0 else math.inf
