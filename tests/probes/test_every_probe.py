"""Laws of every probe that a configuration can name, and probes that must fail them."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.attach.config import PROBES
from eqtoolbox.record.record import is_name
from eqtoolbox.sinks.memory import MemorySink

Rows = list[tuple[str, str, float]]


def lines(found: Any) -> Rows:
    return [(m.quantity, m.target, m.value) for m in found]


def broken_law(probe: eq.Probe, snapshot: eq.Snapshot) -> str:
    """Name of the first law that measuring this snapshot breaks, empty when all hold."""
    rng = lambda seed: torch.Generator().manual_seed(seed)
    reference = probe.reference(snapshot, rng(0))
    state, numbers = torch.get_rng_state(), [x.clone() for x in snapshot.before.values()]
    lines(probe.measure(snapshot, copy.deepcopy(reference), rng(1)))  # what a run finds out once
    first = lines(probe.measure(snapshot, copy.deepcopy(reference), rng(1)))
    if not torch.equal(torch.get_rng_state(), state):
        return "draws from the global stream"
    again = lines(probe.measure(snapshot, copy.deepcopy(reference), rng(1)))
    if repr(first) != repr(again):  # NaN is NaN
        return "two numbers from one snapshot and one stream"
    if not all(map(torch.equal, numbers, snapshot.before.values())):
        return "moves what it measures"
    if probe.headline not in {quantity for quantity, _, _ in first}:
        return "no headline"
    if not all(is_name("/".join(filter(None, (probe.name, q, t)))) for q, t, _ in first):
        return "names that no record can have"
    return ""


@dataclass(frozen=True, kw_only=True)
class Law(eq.Probe):
    """Measures another probe twice in the place of one, as the monitor would run it."""

    name: ClassVar[str] = "law"
    headline: ClassVar[str] = "broken"
    mode: ClassVar[Any] = "train"
    probe: eq.Probe

    def measure(
        self, snapshot: eq.Snapshot, reference: Any, rng: torch.Generator
    ) -> Iterator[eq.Measurement]:
        yield eq.Measurement("broken", 0.0, note=broken_law(self.probe, snapshot))


IMAGES = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
VECTORS = nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)


def told(probe: eq.Probe) -> str:
    """The law that a probe breaks on the second step of the first network that it applies to."""
    for layers, shape in ((IMAGES, (32, 1, 6, 6)), (VECTORS, (64, 3))):
        torch.manual_seed(0)
        model, criterion = copy.deepcopy(nn.Sequential(*layers)), nn.CrossEntropyLoss()
        x, y = torch.randn(*shape), torch.arange(shape[0]) % 3
        optimizer, sink = torch.optim.SGD(model.parameters(), lr=0.05), MemorySink()
        with eq.attach(
            model, optimizer, criterion=criterion, probes=[Law(probe=probe)],
            schedule=eq.at([1]), budget=None, sinks=[sink], on_error="raise",
        ):  # fmt: skip
            for _ in range(2):
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()
        (row,) = [r for r in sink.records if r.probe == "law"]
        if row.status == "ok":
            return row.note
    return f"measures neither images nor vectors: {row.note}"


@pytest.mark.parametrize("kind", PROBES.values(), ids=PROBES)
def test_a_probe_is_pure_and_names_what_it_measures(kind: Callable[[], eq.Probe]) -> None:
    assert told(kind()) == ""


@pytest.mark.parametrize("kind", PROBES.values(), ids=PROBES)
def test_a_probe_is_a_frozen_dataclass_of_its_options(kind: type[eq.Probe]) -> None:
    assert is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(f.kw_only for f in fields(kind) if f.init)
    assert (kind.__doc__ or "").strip(), "one sentence on what it measures, for `check`"


@dataclass(frozen=True, kw_only=True)
class Spoilt(eq.Probe):
    """Breaks one law."""

    name: ClassVar[str] = "spoilt"
    headline: ClassVar[str] = "value"
    mode: ClassVar[Any] = "train"
    how: str = ""

    def measure(
        self, snapshot: eq.Snapshot, reference: Any, rng: torch.Generator
    ) -> Iterator[eq.Measurement]:
        value = float(torch.rand((), generator=rng))
        if self.how == "global":
            value = float(torch.rand(()))
        if self.how == "count":
            snapshot.told["spoilt"] = value = snapshot.told.get("spoilt", 0.0) + 1.0
        if self.how == "move":
            next(iter(snapshot.before.values())).add_(1.0)
        name = "other" if self.how == "headline" else "value"
        yield eq.Measurement(name, value, "a b" if self.how == "name" else "")


@pytest.mark.parametrize(
    ("how", "law"),
    [
        ("", ""),
        ("global", "draws from the global stream"),
        ("count", "two numbers from one snapshot and one stream"),
        ("move", "moves what it measures"),
        ("headline", "no headline"),
        ("name", "names that no record can have"),
    ],
)
def test_the_law_sees_what_is_no_probe(how: str, law: str) -> None:
    assert told(Spoilt(how=how)) == law
