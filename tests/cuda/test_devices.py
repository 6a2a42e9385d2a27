"""A model on two devices at once: the CPU and a GPU."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.cuda.loops import Training, same, sgd
from tests.cuda.test_graphs import vectors


class Halves(nn.Module):
    """Two layers, each on a device of its own."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 8).to(first), nn.Linear(8, 4).to(second)

    def to(self, *_: object, **__: object) -> "Halves":
        """They stay where they are."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x.to(self.a.weight.device)))
        return self.b(hidden.to(self.b.weight.device)).to(x.device)


TRAINING = Training(model=lambda: Halves("cpu", "cpu"), optimizer=sgd, batches=vectors)


@pytest.mark.parametrize("order", [("cpu", "device"), ("device", "cpu")])
def test_every_law_is_measured_where_its_parameters_are(
    order: tuple[str, str], device: str
) -> None:
    first, second = (device if place == "device" else "cpu" for place in order)
    training = replace(TRAINING, model=lambda: Halves(first, second))
    with_, records = training.run(attached=True)
    assert same(with_, training.run(attached=False)[0])
    failed = {(r.name, r.note) for r in records if r.status in ("failed", "non_finite")}
    assert not failed
    known = {r.name: r.value for r in TRAINING.run(attached=True)[1] if r.status == "ok"}
    found = {r.name: r.value for r in records if r.status == "ok"}
    assert found.keys() >= {n for n in known if n.startswith(("noether", "conservation"))}
    assert found["curvature/sharpness"] == pytest.approx(known["curvature/sharpness"], rel=1e-2)
