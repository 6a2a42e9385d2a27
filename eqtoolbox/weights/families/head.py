"""Equivariances of the last linear layer: its output scaled, shifted or rotated."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from eqtoolbox.weights.families.general_linear import MatrixSymmetry
from eqtoolbox.weights.families.homogeneity import Homogeneity
from eqtoolbox.weights.forms.algebra import ROTATIONS, Algebra
from eqtoolbox.weights.forms.form import Form
from eqtoolbox.weights.forms.gram import Gram, MatrixLeg
from eqtoolbox.weights.forms.linear import LinearForm, Term
from eqtoolbox.weights.parameter import MOVED, ContinuousSymmetry


@dataclass(frozen=True, kw_only=True)
class HeadScale(Homogeneity):
    """W_L, b_L -> e^s W_L, e^s b_L: f -> e^s f, rho = y; Q = |W_L|^2 / 2 moves by dQ/dt = -c."""

    family: ClassVar[str] = "head_scale"
    strength: ClassVar[float] = 0.3


@dataclass(frozen=True, kw_only=True)
class HeadShift(ContinuousSymmetry):
    """b_L -> b_L + s e_c: f -> f + s e_c, rho = e_c; Q_c = b_c."""

    family: ClassVar[str] = "head_shift"
    bias: str

    @cached_property
    def form(self) -> LinearForm:
        return self._added_to(self.bias)

    @cached_property
    def output(self) -> LinearForm:
        return self._added_to(MOVED)

    def _added_to(self, name: str) -> LinearForm:
        every, ones = torch.arange(self.dimension), torch.ones(self.dimension).double()
        return LinearForm(terms=(Term(name, None, every, every, ones),), dimension=self.dimension)


@dataclass(frozen=True, kw_only=True)
class HeadRotation(MatrixSymmetry):
    """W_L, b_L -> e^B W_L, e^B b_L, B antisymmetric: f -> e^B f, rho = B y; nothing conserved."""

    family: ClassVar[str] = "head_rotation"
    algebra: ClassVar[Algebra] = ROTATIONS

    @cached_property
    def output(self) -> Form | None:
        every = torch.arange(self.size)[None, None]
        return Gram.of((MatrixLeg(MOVED, -1, every, 1),), self.dimension, ROTATIONS)
