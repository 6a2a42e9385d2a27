"""Discovery over training: the gap opens where there is a symmetry to learn, and only there."""

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.probes.learned import LearnedAlgebra
from eqtoolbox.report import Run
from eqtoolbox.report.sections import sections
from tests.probes.test_equivariance_probe import measured


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(),
                         nn.Linear(64, 1))  # fmt: skip


def trained(target, run_dir, steps: int = 400) -> Run:
    """Regression of a target on fresh normal points, measured at 5 steps."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    probe = LearnedAlgebra()
    with eq.attach(
        model, optimizer, probes=[probe], schedule=100, budget=None, run_dir=run_dir,
        on_error="raise",
    ) as monitor:  # fmt: skip
        loss_fn = monitor.loss(lambda m, b: (m(b) - target(b)).square().mean())
        for step in range(steps + 1):
            loss_fn(model, normal(256, 3, seed=step)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return Run(run_dir)


def test_the_gap_opens_while_a_radial_function_is_learned(tmp_path) -> None:
    run = trained(lambda x: x.square().sum(1, keepdim=True) / 3, tmp_path / "run", steps=500)
    rows = run.records("discovery/dimension")
    assert rows[0].value == 0.0
    assert (rows[-1].value, rows[-1].note) == (3.0, "so(3)")
    gap = [r.value for r in run.records("discovery/gap")]
    assert gap[-1] > 5 * gap[0]
    assert any("so(3)" in f.text and "since step" in f.text for f in run.findings())
    (section,) = [s for s in sections(run) if s.slug == "discovery"]
    assert [p.slug for p in section.panels] == ["discovery-spectrum", "discovery-gap"]
    spectrum = section.panels[0].figure["data"]
    assert len(spectrum) == 9
    assert "so(3)" in section.panels[0].reading


def test_no_gap_opens_without_a_continuous_symmetry(tmp_path) -> None:
    run = trained(lambda x: (x**4).sum(1, keepdim=True) / 4, tmp_path / "run", steps=400)
    assert {r.value for r in run.records("discovery/dimension")} == {0.0}
    assert any("No continuous linear symmetry" in f.text for f in run.findings())


@pytest.mark.parametrize(
    ("shape", "note"),
    [
        ((8, 1, 4, 4), r"needs vectors: inputs"),
        ((8, 9), r"length <= 8, got 9"),
        ((8, 3), r"8 rows for 9 unknowns"),
    ],
)
def test_what_cannot_be_identified_is_not_applicable(shape, note: str) -> None:
    import re

    model = nn.Sequential(nn.Flatten(), nn.Linear(shape[-1] ** (2 if len(shape) > 2 else 1), 1))
    loss = lambda model, batch: model(batch).square().mean()
    records = measured(model, loss, normal(*shape), LearnedAlgebra(), steps=1)
    found = records["discovery/dimension"]
    assert found.status == "not_applicable"
    assert re.search(note, found.note)


def test_no_points_are_refused() -> None:
    with pytest.raises(ValueError, match="points must be >= 1, got 0"):
        LearnedAlgebra(points=0)
