"""Idle units: those that did nothing on batch after batch are dead, those on one batch are not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eqtoolbox.replay.objective import Objective, Parameters
from eqtoolbox.replay.thread.scope import unobserved
from eqtoolbox.replay.tree import tensors
from eqtoolbox.watch.probe import Measurement
from eqtoolbox.watch.state import State
from eqtoolbox.weights.families.discrete import UnitSymmetry
from eqtoolbox.weights.orbit import units
from eqtoolbox.weights.orbit.activity import Activity
from eqtoolbox.weights.parameter import DiscreteSymmetry
from eqtoolbox.world.world import World

BATCHES = 5  # in a row on which a unit must do nothing to be called dead,
LEAST = 3  # or all of these, while no more were seen
SAMPLES = 30  # in them: a unit that is silent on these works for less than a tenth of the data
NAMED = 3  # units that a note names

Layer = Mapping[int, str]  # idle units, and why


@dataclass(kw_only=True, eq=False)
class Silence(State):
    """How long units have been silent, on the batches measured."""

    batches: int = 0
    samples: int = 0  # in them
    # of the units that were silent on the last one, by layer: batches in a row, and samples in them
    silent: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)

    def listen(self, layers: Mapping[str, Layer], samples: int) -> None:
        """Add a batch on which these units did nothing."""
        before = self.silent
        self.batches, self.samples = self.batches + 1, self.samples + samples
        self.silent = {
            layer: {unit: _longer(before.get(layer, {}).get(unit), samples) for unit in idle}
            for layer, idle in layers.items()
            if idle
        }


@dataclass(frozen=True)
class Idle:
    """Units of a step that do nothing, by layer, and what earlier batches said of them."""

    layers: dict[str, Layer]
    sizes: dict[str, int]  # units of each layer
    memory: Silence  # this batch included

    @classmethod
    def of(
        cls,
        families: dict[str, list[DiscreteSymmetry]],
        objective: Objective,
        params: Parameters,
        gradient: Parameters,
        memory: Silence,
        world: World | None = None,
    ) -> "Idle":
        """Look at the units of one batch; each counts once though several symmetries move it.

        Args:
            families: the discrete symmetries of the loss.
            objective, params, gradient: the loss, where and with which slope.
            memory: of the batches before; this one is added to it.
            world: whose ranks have a share of the batch each.
        """
        activity = Activity.of(lambda: objective.loss(params), params)
        with unobserved():
            layers, sizes = _layers(families, params, gradient, activity)
        samples = sum(map(_samples, objective.calls))
        if world is not None:
            shares = world.each("idle units", (layers, samples))
            layers = _on_all([found for found, _ in shares])
            samples = sum(n for _, n in shares)
        memory.listen(layers, samples)
        return cls(layers, sizes, memory)

    def measurements(self) -> Iterator[Measurement]:
        """How many units are dead, and the share of every layer that has any.

        While too few batches were seen to tell, the count is that of units which were silent on all
        of them, `not_converged`; none at all needs no second batch.
        """
        batches, samples = self.memory.batches, self.memory.samples
        known = batches >= LEAST and samples >= SAMPLES
        wanted = min(batches, BATCHES) if known else 0, SAMPLES if known else 0
        dead = {
            layer: [u for u in idle if _enough(self.memory.silent[layer][u], wanted)]
            for layer, idle in self.layers.items()
        }
        labels = [
            f"{layer} unit {unit} ({self.layers[layer][unit]})"
            for layer, found in dead.items()
            for unit in found
        ]
        status: Any = "ok" if known or not labels else "not_converged"
        note = listed(labels, len(labels))
        facts: dict[str, Any] = {"units": labels[:NAMED]}
        yield Measurement("dead", float(len(labels)), status=status, note=note, facts=facts)
        for layer, found in dead.items():
            if found:
                size = self.sizes[layer]
                streaks = [self.memory.silent[layer][unit] for unit in found]
                batches, samples = map(min, zip(*streaks, strict=True))
                on = f"{batches} batches in a row" if batches > 1 else "the only batch measured"
                note = f"{len(found)} of {size} units on {on}, {samples} samples"
                facts = {"dead": len(found), "units": size, "batches": batches, "samples": samples}
                share = len(found) / size
                yield Measurement("dead_share", share, layer, status=status, note=note, facts=facts)


def _on_all(shares: Sequence[Mapping[str, Layer]]) -> dict[str, Layer]:
    """Units that are idle on every share of a batch."""
    first, *others = shares
    return {
        name: {u: why for u, why in idle.items() if all(u in o.get(name, {}) for o in others)}
        for name, idle in first.items()
    }


def _layers(
    families: dict[str, list[DiscreteSymmetry]],
    params: Parameters,
    gradient: Parameters,
    activity: Activity,
) -> tuple[dict[str, Layer], dict[str, int]]:
    """Idle units of every layer, and how many units it has."""
    layers: dict[str, Layer] = {}
    sizes: dict[str, int] = {}
    holders: dict[tuple[str, int], list[set[tuple[str, int]]]] = {}  # seen, by what they hold
    for member in (m for members in families.values() for m in members):
        if not isinstance(member, UnitSymmetry) or member.name.endswith("heads"):
            continue
        own = {(slot.name, slot.axis) for slot in member.slots}
        if any(own <= larger for larger in holders.get(next(iter(own)), ())):
            continue
        for slot in own:
            holders.setdefault(slot, []).append(own)
        sizes[member.name] = units.count(member)
        layers[member.name] = units.idle(member, params, gradient, activity)
    return layers, sizes


def listed(named: list[str], count: int) -> str:
    """The first few of so many, and how many more there are."""
    named = named[:NAMED]
    rest = count - len(named)
    return "; ".join([*named, *([f"{rest} more"] if rest else [])])


def _enough(streak: tuple[int, int], wanted: tuple[int, int]) -> bool:
    return streak[0] >= wanted[0] and streak[1] >= wanted[1]


def _longer(streak: tuple[int, int] | None, samples: int) -> tuple[int, int]:
    batches, so_far = streak or (0, 0)
    return batches + 1, so_far + samples


def _samples(piece: Objective) -> int:
    """Length of the first tensor of a batch."""
    return next((len(x) for x in tensors(piece.batch) if x.dim() > 0), 1)
