"""A motion: one finite map T of the parameters, with what it makes of all that belongs to them.

Where L(T theta) = L(theta), gradients go along as g(T theta) = (DT)^-T g(theta), and so does all
that is linear in gradients: momentum, `.grad`, its partial sums, its scaled values. Second moments
go by the elementwise square of (DT)^-T: exactly if every row of it has one entry (diagonal
families, permutations, reflections); otherwise correlations between gradients, which no
optimizer of the kind keeps, are left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from eqtoolbox.weights.forms.diagonal import Diagonal
from eqtoolbox.weights.forms.form import Form
from eqtoolbox.weights.forms.gram import Gram
from eqtoolbox.weights.forms.linear import LinearForm
from eqtoolbox.weights.forms.stack import Parameters
from eqtoolbox.weights.forms.through import Through
from eqtoolbox.weights.orbit.canonical import GroupElement
from eqtoolbox.weights.parameter import ContinuousSymmetry, ParameterSymmetry

Map = Callable[[Parameters], dict[str, Tensor]]


class Motion(ABC):
    """A map of parameters and running statistics; tensors by name, in and out, float64."""

    monomial: bool = True  # every row of DT has one entry
    places: Mapping[str, str] = {}  # parameters that others take the place of as a whole: from whom

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Parameters that move, and those that the map reads."""

    @property
    def buffers(self) -> tuple[str, ...]:
        """Running statistics that move along."""
        return ()

    @abstractmethod
    def moved(self, tensors: Parameters) -> dict[str, Tensor]:
        """T theta, of those tensors that move; all `names` given, `buffers` as far as there."""

    @abstractmethod
    def cotangent(self, at: Parameters, gradients: Parameters) -> dict[str, Tensor]:
        """(DT)^-T of gradients at `at`, to be read at T(at); of all `names`."""

    @abstractmethod
    def squared(self, at: Parameters, squares: Parameters) -> dict[str, Tensor]:
        """The elementwise square of (DT)^-T on second moments."""


@dataclass(frozen=True, kw_only=True)
class Flow(Motion):
    """One element of a continuous symmetry's group: T_c."""

    form: Form
    coefficients: Tensor  # c, (dimension,), float64

    @property
    def monomial(self) -> bool:  # type: ignore[override]
        return isinstance(self.form, (Diagonal, LinearForm))

    @property
    def names(self) -> tuple[str, ...]:
        return self.form.names

    def moved(self, tensors: Parameters) -> dict[str, Tensor]:
        return self.form.flow(self.coefficients)(tensors)

    def cotangent(self, at: Parameters, gradients: Parameters) -> dict[str, Tensor]:
        own = {n: gradients[n] for n in self.names}
        if isinstance(self.form, Diagonal):
            return self.form.flow(-self.coefficients)(own)
        if isinstance(self.form, Gram):
            return self._mixed.cotangent(at, own)
        _constant(self.form)  # T = 1 + K, K of what stays: (1 + DK)^-T = 1 - (DK)^T
        pulled = self.form.pullback(at, self.coefficients, own)
        return {n: own[n] - pulled[n] for n in self.names}

    def squared(self, at: Parameters, squares: Parameters) -> dict[str, Tensor]:
        own = {n: squares[n] for n in self.names}
        if isinstance(self.form, Diagonal):
            return self.form.flow(-2 * self.coefficients)(own)
        if isinstance(self.form, Gram):
            return self._mixed.squared(at, own)
        form = _constant(self.form)
        if isinstance(form, LinearForm):
            return own
        readers = tuple(replace(r, factor=r.factor**2) for r in form.readers)
        where = {n: at[n].square() for n in self.names}
        pulled = replace(form, readers=readers).pullback(where, self.coefficients.square(), own)
        return {n: own[n] - pulled[n] for n in self.names}  # the pullback has a sign, no square

    @property
    def _mixed(self) -> "Mixed":
        form = self.form
        assert isinstance(form, Gram)
        plus = torch.matrix_exp(form.matrices(self.coefficients))
        return Mixed(form=form, plus=plus, minus=torch.linalg.inv(plus).mT)


def _constant(form: Form) -> LinearForm | Through:
    if not isinstance(form, (LinearForm, Through)):
        raise TypeError(
            f"{type(form).__name__} is of no kind whose gradients are known to go along"
        )
    return form


@dataclass(frozen=True, kw_only=True)
class Mixed(Motion):
    """Matrices A of every block: legs of sign + by A, of sign - by A^-T."""

    monomial = False
    form: Gram
    plus: Tensor  # A, (blocks, d, d)
    minus: Tensor  # A^-T

    @property
    def names(self) -> tuple[str, ...]:
        return self.form.names

    def moved(self, tensors: Parameters) -> dict[str, Tensor]:
        return self._by(tensors, self.plus, self.minus)

    def cotangent(self, at: Parameters, gradients: Parameters) -> dict[str, Tensor]:
        return self._by(gradients, self.minus, self.plus)

    def squared(self, at: Parameters, squares: Parameters) -> dict[str, Tensor]:
        return self._by(squares, self.minus.square(), self.plus.square())

    def _by(self, tensors: Parameters, plus: Tensor, minus: Tensor) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for leg in self.form.legs:
            if leg.name in tensors:
                old = made.get(leg.name, tensors[leg.name])
                made[leg.name] = leg.mixed(old, plus, minus, old.clone())
        return made


@dataclass(frozen=True, kw_only=True)
class Exchange(Motion):
    """One element of a discrete symmetry's group: a signed permutation of entries."""

    symmetry: ParameterSymmetry
    element: Map = field(repr=False)
    places: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, symmetry: ParameterSymmetry, element: Map, params: Parameters) -> "Exchange":
        """The motion by an element of the symmetry, at parameters of the model's shapes."""
        own = {n: params[n] for n in symmetry.names}
        names = {id(t): n for n, t in own.items()}
        new = element(own)  # whole parameters that change places are handed on as they are
        taken = {n: names[id(t)] for n, t in new.items() if names.get(id(t), n) != n}
        return cls(symmetry=symmetry, element=element, places=taken)

    @property
    def names(self) -> tuple[str, ...]:
        return self.symmetry.names

    @property
    def buffers(self) -> tuple[str, ...]:
        return self.symmetry.buffers

    def moved(self, tensors: Parameters) -> dict[str, Tensor]:
        return self.element({n: tensors[n] for n in (*self.names, *self.buffers) if n in tensors})

    def cotangent(self, at: Parameters, gradients: Parameters) -> dict[str, Tensor]:
        return self.element({n: gradients[n] for n in self.names})

    def squared(self, at: Parameters, squares: Parameters) -> dict[str, Tensor]:
        return {n: x.abs() for n, x in self.cotangent(at, squares).items()}


@dataclass(frozen=True, kw_only=True)
class Offset(Motion):
    """A constant added to parameters."""

    by: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.by)

    def moved(self, tensors: Parameters) -> dict[str, Tensor]:
        return {n: tensors[n] + d for n, d in self.by.items()}

    def cotangent(self, at: Parameters, gradients: Parameters) -> dict[str, Tensor]:
        return {n: gradients[n] for n in self.by}

    def squared(self, at: Parameters, squares: Parameters) -> dict[str, Tensor]:
        return self.cotangent(at, squares)


@dataclass(frozen=True, kw_only=True)
class Path(Motion):
    """Motions one after the other."""

    motions: Sequence[Motion]

    @property
    def monomial(self) -> bool:  # type: ignore[override]
        return all(m.monomial for m in self.motions)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for m in self.motions for n in m.names))

    @property
    def buffers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for m in self.motions for n in m.buffers))

    @property
    def places(self) -> Mapping[str, str]:  # type: ignore[override]
        found: dict[str, str] = {}
        for m in self.motions:
            found |= {n: found.get(source, source) for n, source in m.places.items()}
        return found

    def moved(self, tensors: Parameters) -> dict[str, Tensor]:
        now, made = dict(tensors), dict[str, Tensor]()
        for m in self.motions:
            change = m.moved(now)
            now.update(change)
            made.update(change)
        return made

    def cotangent(self, at: Parameters, gradients: Parameters) -> dict[str, Tensor]:
        where, now = dict(at), {n: gradients[n] for n in self.names}
        for m in self.motions:
            now.update(m.cotangent(where, now))
            where.update(m.moved(where))
        return now

    def squared(self, at: Parameters, squares: Parameters) -> dict[str, Tensor]:
        where, now = dict(at), {n: squares[n] for n in self.names}
        for m in _joined(self.motions):  # the square of a product, not a product of squares
            now.update(m.squared(where, now))
            where.update(m.moved(where))
        return now


def _joined(motions: Sequence[Motion]) -> list[Motion]:
    """Elements of one group taken together, past others that act on other axes."""
    made: list[Motion] = []
    for m in motions:
        for k in reversed(range(len(made))):
            other = made[k]
            if isinstance(m, Flow) and isinstance(other, Flow) and m.form is other.form:
                made[k] = replace(m, coefficients=other.coefficients + m.coefficients)
                break
            if isinstance(m, Mixed) and isinstance(other, Mixed) and m.form is other.form:
                plus, minus = m.plus @ other.plus, m.minus @ other.minus
                made[k] = replace(m, plus=plus, minus=minus)
                break
            if not all(isinstance(x, Mixed | Offset) or _commutes(x) for x in (m, other)):
                made.append(m)
                break
        else:
            made.append(m)
    return made


def _commutes(motion: Motion) -> bool:
    return isinstance(motion, Flow) and not isinstance(motion.form, Through)


def path_of(taken: Sequence[tuple[ContinuousSymmetry, GroupElement]]) -> Path:
    """The motion along the path to a canonical point (`eqtoolbox.weights.orbit.canonical`)."""
    made: list[Motion] = []
    for symmetry, element in taken:
        if isinstance(element, dict):
            made.append(Offset(by=element))
        elif symmetry.form.balance == "equal grams":
            assert isinstance(symmetry.form, Gram), "grams are those of its legs"
            made.append(Mixed(form=symmetry.form, plus=element[0], minus=element[1]))
        elif bool((element != 0).any()):
            made.append(Flow(form=symmetry.form, coefficients=element))
    return Path(motions=made)
