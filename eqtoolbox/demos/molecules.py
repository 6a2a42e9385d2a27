"""Molecules: energies and forces of ase's g2 set, by a plain network and by an equivariant one."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.demos.demo import Contest, Data, Demo, Entrant, PhysicalLaw, Standing, batches
from eqtoolbox.demos.scores import relative_error
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.linear import positions, vectors
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.each import Each
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.finite import Symmetric
from eqtoolbox.symmetry.groups.matrices import E3

ELEMENTS = ("H", "C", "N", "O")
ATOMS = 9  # places of a molecule; smaller ones are padded by atoms of no element
CUTOFF = 4.0  # angstrom
SHAKEN = 0.08  # angstrom, standard deviation of each coordinate
_FORCES = {"energy": trivial, "forces": vectors}
MOTIONS = Equivariance(E3(), Each((positions, trivial)), Each(_FORCES), name="motions")
SCALARS = Equivariance(  # wrong: forces that stay as the molecule turns
    E3(), Each((positions, trivial)), Each({"energy": trivial, "forces": trivial}), name="scalars"
)
NUMBERING = Equivariance(
    Symmetric(ATOMS),
    Each((Permute(-2), Permute(-2))),
    Each({"energy": trivial, "forces": Permute(-2)}),
    name="numbering",
)


class Potential(nn.Module):
    """An energy and the forces that it makes: minus its gradient.

    Called with positions (batch, n, 3) in angstrom and species (batch, n, 4), one-hot, zeros for
    padding; returns {"energy": (batch,) in eV, "forces": (batch, n, 3) in eV/angstrom}.
    """

    def energy(self, positions: Tensor, species: Tensor) -> Tensor:
        """(batch,)."""
        raise NotImplementedError

    def forward(self, positions: Tensor, species: Tensor) -> dict[str, Tensor]:
        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            energy = self.energy(x, species)
            return energy.sum(), energy

        slope, energy = torch.func.grad(total, has_aux=True)(positions)
        return {"energy": energy, "forces": -slope}


class PlainMolecules(Potential):
    """A perceptron on coordinates about the centroid, which knows neither turns nor atoms."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(ATOMS * 7, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def energy(self, positions: Tensor, species: Tensor) -> Tensor:
        real = species.sum(-1, keepdim=True)
        centre = (real * positions).sum(-2, keepdim=True) / real.sum(-2, keepdim=True)
        x = torch.cat([real * (positions - centre), species], dim=-1)
        energy: Tensor = self.layers(x.flatten(1))
        return energy.squeeze(-1)


class Harmonic(Potential):
    """Two rounds of messages by e3nn's tensor products with spherical harmonics of the bonds.

    Raises:
        ImportError: e3nn is missing.
    """

    hidden = "16x0e + 8x1o + 4x2e"

    def __init__(self, radial: int = 8) -> None:
        super().__init__()
        o3 = _o3()
        self.radial, self.sphere = radial, o3.Irreps("0e + 1o + 2e")
        self.harmonics = o3.SphericalHarmonics(self.sphere, True, normalization="component")
        self.start = o3.Linear("4x0e", "16x0e")
        self.own, self.products, self.weights = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for a, b in pairwise(["16x0e", self.hidden, "16x0e"]):
            product = o3.FullyConnectedTensorProduct(a, self.sphere, b, shared_weights=False)
            self.own.append(o3.Linear(a, b))
            self.products.append(product)
            self.weights.append(_radial(radial, product.weight_numel))
        self.head = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 1))

    def energy(self, positions: Tensor, species: Tensor) -> Tensor:
        real = species.sum(-1) > 0
        others = ~torch.eye(len(real[0]), dtype=torch.bool, device=real.device)
        batch, i, j = (real[:, :, None] & real[:, None] & others).nonzero(as_tuple=True)
        bonds = positions[batch, i] - positions[batch, j]
        lengths = bonds.square().sum(-1).sqrt()
        angles = self.harmonics(bonds)
        bumps = _bumps(lengths, self.radial)
        h = self.start(species)
        for own, product, weights in zip(self.own, self.products, self.weights, strict=True):
            heard = product(h[batch, j], angles, weights(bumps))
            summed = heard.new_zeros(*h.shape[:2], heard.shape[-1])
            h = own(h) + summed.index_put((batch, i), heard, accumulate=True) / 2
        atoms: Tensor = self.head(h).squeeze(-1)
        return (atoms * real).sum(-1)


def _bumps(lengths: Tensor, count: int) -> Tensor:
    """Gaussians of the length, (bonds, count), that fade twice differentiably at the cutoff."""
    step = CUTOFF / count
    centres = step * torch.arange(1, count + 1).to(lengths)
    fade = (1 - (lengths / CUTOFF).square()).clamp(min=0) ** 3
    gaussians: Tensor = torch.exp(-((lengths[:, None] - centres) / step).square())
    return gaussians * fade[:, None]


def _radial(bumps: int, weights: int) -> nn.Module:
    """No biases, so that what is zero at the cutoff stays zero."""
    return nn.Sequential(
        nn.Linear(bumps, 32, bias=False), nn.SiLU(), nn.Linear(32, weights, bias=False)
    )


def load() -> Data:
    """Shaken molecules of H, C, N and O of 3 to 9 atoms with EMT's energies and forces.

    To learn from: 12 shakes of each as g2 has it; to judge by: 4 more, each moved at random.
    Energies are relative to the best sum of one energy for each atom.
    """
    ase = _ase()
    rng = torch.Generator().manual_seed(0)
    all_of_them = [ase.build.molecule(name) for name in sorted(ase.collections.g2.names)]
    fitting = [
        m
        for m in all_of_them
        if 3 <= len(m) <= ATOMS and set(m.get_chemical_symbols()) <= set(ELEMENTS)
    ]
    train, test = (_padded([m for m in fitting for _ in range(n)], rng) for n in (12, 4))
    moved = [
        positions(g, x[None])[0]
        for g, x in zip(MOTIONS.group.sample(len(test[0]), rng), test[0], strict=True)
    ]
    test = torch.stack(moved), test[1]
    known, asked = energies(*train), energies(*test)
    counts = torch.cat([train[1].sum(1), torch.ones(len(train[1]), 1)], dim=1)
    atoms = torch.linalg.lstsq(counts, known["energy"][:, None]).solution
    for (_, species), labels in ((train, known), (test, asked)):
        ones = torch.ones(len(species), 1)
        labels["energy"] -= (torch.cat([species.sum(1), ones], dim=1) @ atoms).squeeze(1)
    return Data(train=(train, known), test=(test, asked))


def trained(steps: int = 100) -> tuple[nn.Module, tuple[Tensor, Tensor], dict[str, Tensor]]:
    """The plain potential after a few steps without the monitor, with test data: for the audit."""
    data = load()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PlainMolecules()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for inputs, targets in batches(data.train, 32, steps, seed=0):
        optimizer.zero_grad()
        loss(model(*inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval(), *data.test


def energies(positions: Tensor, species: Tensor) -> dict[str, Tensor]:
    """EMT's energy in eV and forces in eV/angstrom, of a batch as `Potential` takes it."""
    ase = _ase()
    energy = torch.zeros(len(positions), dtype=torch.float64)
    forces = torch.zeros(positions.shape, dtype=torch.float64)
    for i, (x, kinds) in enumerate(zip(positions.double(), species, strict=True)):
        real = kinds.sum(-1) > 0
        symbols = [ELEMENTS[k] for k in kinds[real].argmax(-1).tolist()]
        atoms = ase.Atoms(symbols, x[real].numpy(), calculator=ase.calculators.emt.EMT())
        energy[i], forces[i, real] = atoms.get_potential_energy(), _tensor(atoms.get_forces())
    return {"energy": energy.to(positions), "forces": forces.to(positions)}


def _padded(molecules: list[Any], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions (n, 9, 3), shaken, and species (n, 9, 4)."""
    places, species = torch.zeros(len(molecules), ATOMS, 3), torch.zeros(len(molecules), ATOMS, 4)
    for i, m in enumerate(molecules):
        x = _tensor(m.positions).float()
        places[i, : len(m)] = x + SHAKEN * torch.randn(x.shape, generator=rng)
        for k, symbol in enumerate(m.get_chemical_symbols()):
            species[i, k, ELEMENTS.index(symbol)] = 1.0
    return places, species


def laws(data: Data) -> list[PhysicalLaw]:
    """EMT itself, in float64."""
    molecules = tuple(x[:8].double() for x in data.test[0])

    def emt(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return energies(*batch)

    texts = {
        MOTIONS: "EMT's energies stay and its forces turn with the molecule",
        NUMBERING: "EMT does not see how atoms are numbered",
        SCALARS: "Forces that stay as the molecule turns are not its forces",
    }
    return [
        PhysicalLaw(
            text=text,
            result=equivariance_error(emt, molecules, claim),
            control=claim is SCALARS,
        )
        for claim, text in texts.items()
    ]


def loss(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Mean squares of the errors of energies (eV) and of force components (eV/angstrom)."""
    real = targets["forces"].abs().sum(-1, keepdim=True) > 0  # padding feels no force
    apart = (outputs["forces"] - targets["forces"]) * real
    return (outputs["energy"] - targets["energy"]).square().mean() + apart.square().sum() / (
        3 * real.sum()
    )


def force_error(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> tuple[float, float]:
    """Relative error of the forces."""
    return relative_error(outputs["forces"], targets["forces"])


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array)


def _ase() -> Any:
    try:
        import ase
        import ase.build
        import ase.calculators.emt
        import ase.collections
    except ImportError as error:
        raise ImportError('the molecules need ase: pip install "eqtoolbox[demos]"') from error
    return ase


def _o3() -> Any:
    try:
        import e3nn.o3
    except ImportError as error:
        raise ImportError(
            'the equivariant network needs e3nn: pip install "eqtoolbox[demos]"'
        ) from error
    return e3nn.o3


DEMO = Demo(
    name="molecules",
    title="potentials for small molecules on EMT's energies and forces",
    load=load,
    entries={
        "plain": Entrant(network=PlainMolecules),
        "augmented": Entrant(network=PlainMolecules, augment=MOTIONS),
        "equivariant": Entrant(network=Harmonic),
    },
    loss=loss,
    score=Standing(name="force error", of=force_error),
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    steps=400,
    batch=32,
    anneal=True,
    watched=32,
    laws=laws,
    contest=Contest(enforced=("equivariant",), every=(12, 4, 1), steps=100, seeds=1),
)
