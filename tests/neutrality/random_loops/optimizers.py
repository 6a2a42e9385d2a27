"""Optimizers by name, as the loops that people write make them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn, optim

Make = Callable[..., Any]
SINGLE: dict[str, Make] = {
    "sgd": lambda p, **o: optim.SGD(p, lr=0.05, **o),
    "momentum": lambda p, **o: optim.SGD(p, lr=0.05, momentum=0.9, **o),
    "dampened": lambda p, **o: optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.1, **o),
    "nesterov": lambda p, **o: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, **o),
    "maximize": lambda p, **o: optim.SGD(p, lr=1e-3, maximize=True, **o),
    "adam": lambda p, **o: optim.Adam(p, lr=0.01, **o),
    "adamw": lambda p, **o: optim.AdamW(p, lr=0.01, **o),
    "amsgrad": lambda p, **o: optim.AdamW(p, lr=0.01, amsgrad=True, **o),
    "rmsprop": lambda p, **o: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, **o),
    "adagrad": lambda p, **o: optim.Adagrad(p, lr=0.02, **o),
    "adadelta": lambda p, **o: optim.Adadelta(p, **o),
    "nadam": lambda p, **o: optim.NAdam(p, lr=0.005, **o),
    "radam": lambda p, **o: optim.RAdam(p, lr=0.005, **o),
    "adamax": lambda p, **o: optim.Adamax(p, lr=0.005, **o),
    "asgd": lambda p, **o: optim.ASGD(p, lr=0.05, **o),
}
FUSED = ("sgd", "momentum", "nesterov", "adam", "adamw", "amsgrad", "adagrad")
CLOSURES = ("lbfgs", "closure")  # their step() evaluates the loss itself
OTHERS = ("rprop", "rate in a tensor", "muon and adamw", "sgd and adamw", *CLOSURES)
OPTIMIZERS = (*SINGLE, *OTHERS)


def optimizers(
    name: str, model: nn.Module, groups: bool, options: dict[str, Any]
) -> list[optim.Optimizer]:
    """The optimizers of this name over all parameters of the model."""
    parameters = list(model.parameters())
    if name in SINGLE:
        half = len(parameters) // 2
        split = [{"params": parameters[:half], "lr": 0.02}, {"params": parameters[half:]}]
        return [SINGLE[name](split if groups else parameters, **options)]
    if name == "lbfgs":
        return [optim.LBFGS(parameters, lr=0.1, max_iter=3)]
    if name == "rprop":
        return [optim.Rprop(parameters, lr=0.005)]
    if name == "closure":
        return [optim.SGD(parameters, lr=0.05, momentum=0.9)]
    if name == "rate in a tensor":
        return [optim.Adam(parameters, lr=torch.tensor(0.01), foreach=False)]
    matrices = [p for p in parameters if p.dim() == 2]
    others = [p for p in parameters if p.dim() != 2]
    first = optim.Muon if name == "muon and adamw" and hasattr(optim, "Muon") else optim.SGD
    return [first(matrices, lr=0.01), optim.AdamW(others, lr=0.01)]


SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "cosine": lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "steps": lambda o: optim.lr_scheduler.StepLR(o, 2),
    "one cycle": lambda o: optim.lr_scheduler.OneCycleLR(
        o, max_lr=0.1, total_steps=20, cycle_momentum=False
    ),
    "plateau": lambda o: optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
}
