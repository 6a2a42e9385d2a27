"""The map of the spectrum: every eigenvalue's share lies where the axis says it does."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.probes.spectrum import Spectrum
from eqtoolbox.report.run import Run
from eqtoolbox.report.topics.spectrum import density_rows, spectrum_panels


def test_shares_add_up_and_lie_at_their_eigenvalues() -> None:
    early = np.array([[0.0, 0.0, 3.0, np.nan], [0.5, 0.3, 0.2, 0.0]])
    late = np.array([[-1.0, 0.0, 50.0, 50.0], [0.25, 0.25, 0.25, 0.25]])
    density, rows, unit = density_rows([early, late])
    assert np.allclose(density.sum(axis=0), 1)
    step = rows[1] - rows[0]
    for column, (value, share) in enumerate(((3.0, 0.2), (50.0, 0.5))):
        near = np.abs(rows - np.arcsinh(value / unit)) < 6 * step
        assert np.isclose(density[near, column].sum(), share, atol=1e-3)
    empty = np.abs(rows - np.arcsinh(10.0 / unit)) < 3 * step
    assert density[empty].max() < 1e-3


def test_a_run_shows_the_density_of_its_quadratic_loss(tmp_path: Path) -> None:
    """|W x|^2 / 2 with a diagonal mean of x x^T: the Hessian's eigenvalues are known."""
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.diag(torch.tensor([1.0, 2.0, 10.0]))
    with eq.attach(
        model, optimizer, probes=[Spectrum()], schedule=1, budget=None, run_dir=tmp_path / "a"
    ) as monitor:
        loss_fn = monitor.loss(lambda m, b: m(b).square().sum() / 2)
        for _ in range(3):
            optimizer.zero_grad()
            loss_fn(model, x).backward()
            optimizer.step()
    run = Run(tmp_path / "a")
    steps, (first, *_) = run.array("spectrum/density")
    known = first[0][~np.isnan(first[0])]
    assert np.allclose(np.unique(known.round(3)), [1, 4, 100], rtol=1e-3)
    assert np.isclose(np.nansum(first[1]), 1)
    panel = next(p for p in spectrum_panels(run) if p.slug == "density")
    (figure,) = panel.figure["data"]
    assert figure["x"] == steps.tolist() == [0, 1, 2]
    level = np.array(figure["z"], dtype=float)[:, 0]
    assert {"0", "10¹", "10²"} >= set(panel.figure["layout"]["yaxis"]["ticktext"])
    assert level.argmin() not in (0, len(level) - 1)  # both ends hold eigenvalues
