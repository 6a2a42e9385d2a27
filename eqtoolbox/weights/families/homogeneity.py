"""Homogeneity: every parameter scaled, each at its own rate, scales the output."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from eqtoolbox.weights.forms.diagonal import Diagonal, whole
from eqtoolbox.weights.parameter import MOVED, ContinuousSymmetry


@dataclass(frozen=True, kw_only=True)
class Homogeneity(ContinuousSymmetry):
    """theta_n -> e^(r_n s) theta_n: f -> e^(k s) f, rho = k y (Euler: J K = k f).

    ReLU network without biases: all rates 1 and k the number of layers. With biases
    (quasi-homogeneity): weights at rate 1, the bias of layer l at rate l. Q = sum of
    r_n |theta_n|^2 / 2 moves by dQ/dt = -k <dl/dy, y>, the same for every layer.

    References:
        Lyu & Li 2020 (arXiv 1906.05890); Kunin et al. 2023 (arXiv 2210.03820).
    """

    family: ClassVar[str] = "homogeneity"
    strength: ClassVar[float] = 0.1
    rates: tuple[tuple[str, float], ...]
    degree: float = 1.0

    @cached_property
    def form(self) -> Diagonal:
        return Diagonal.of(tuple(whole(name, rate) for name, rate in self.rates), 1)

    @cached_property
    def output(self) -> Diagonal:
        return Diagonal.of((whole(MOVED, self.degree),), 1)
