"""Twins: two models of one architecture, parameter by parameter."""

from torch import nn


def check_twins(model: nn.Module, reference: nn.Module) -> None:
    """Refuse models whose parameters and buffers do not fit, or have no numbers.

    Raises:
        ValueError: says which.

    Example:
        >>> check_twins(nn.Linear(2, 3), nn.Linear(2, 4))
        Traceback (most recent call last):
        ValueError: expected models of one architecture, got weight of (3, 2) and of (4, 2)
    """
    for kind in ("named_parameters", "named_buffers"):
        own, other = (dict(getattr(m, kind)()) for m in (model, reference))
        for name in [*own, *other]:
            kinds = [
                (tuple(x[name].shape), x[name].dtype) if name in x else () for x in (own, other)
            ]
            if kinds[0] != kinds[1]:
                part = slice(1) if kinds[0][:1] != kinds[1][:1] else slice(1, 2)
                told = " and of ".join(str(*k[part]) if k else "nothing" for k in kinds)
                raise ValueError(f"expected models of one architecture, got {name} of {told}")
        for name, x in [*own.items(), *other.items()]:
            if x.is_meta:
                raise ValueError(f"{name} is on meta: it has no numbers")
            if x.is_floating_point() and not bool(x.isfinite().all()):
                raise ValueError(f"{name} is not finite: train it anew, or load a sound checkpoint")
    if not list(model.parameters()):
        raise ValueError("expected models with parameters, got none")
