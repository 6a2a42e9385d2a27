"""The whole spectrum: its moments, and its density as a map over the steps."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eqtoolbox.report.drawing import PALETTE, faded, plain
from eqtoolbox.report.figures import Figure, Panel, Plot
from eqtoolbox.report.log import Log
from eqtoolbox.report.trace import trace, vectors
from eqtoolbox.report.words import raised

LEVELS, STEPS = 90, 120  # rows and columns of the map at most
LINEAR = 0.02  # of the largest |eigenvalue|: below, the axis is linear, as is what Lanczos resolves
TINY = 1e-100  # largest eigenvalue that counts as zero
SMOOTHED = 1.5  # rows: standard deviation of the Gaussian that smooths the density
DECADES = 5  # of the colour scale
SCALE = [[0.0, faded(PALETTE[0], 0.0)], [0.5, faded(PALETTE[0], 0.7)], [1.0, PALETTE[1]]]


def spectrum_panels(run: Log) -> Iterator[Panel]:
    """Trace and effective rank over the steps, and the density where it was kept."""
    for quantity, title, reading in (
        ("trace", "Trace of the Hessian", "Sum of all eigenvalues, with its standard error."),
        (
            "effective_rank",
            "Effective rank",
            "Squared trace over squared Frobenius norm: how many equal eigenvalues would do.",
        ),
    ):
        estimate = trace(run, f"spectrum/{quantity}")
        if estimate is not None:
            plot = Plot(last_step=run.last_step)
            plot.line(estimate, quantity.replace("_", " "), PALETTE[0])
            yield plot.panel(quantity.replace("_", "-"), title, reading)
    steps, values = vectors(run, "spectrum/density")
    if len(steps) > 1 and values.ndim == 3 and values.shape[1] == 2 and values.shape[2]:
        lost = np.isnan(values).any(axis=1) | (values[:, 1] < 0)
        values = np.where(lost[:, None], 0.0, values)  # nodes that weigh nothing
        yield _map(steps, list(values))


def density_rows(
    quadratures: list[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Densities on one axis that is linear near zero and logarithmic beyond.

    Args:
        quadratures: nodes and weights of each step, (2, nodes).

    Returns:
        density per row (rows, steps), positions asinh(eigenvalue / unit) of the rows, and the unit.
    """
    largest = max(float(np.nanmax(np.abs(q[0]))) for q in quadratures)
    unit = LINEAR * (largest if largest > TINY else 1.0)
    placed = [np.arcsinh(q[0] / unit) for q in quadratures]
    low = min(float(np.nanmin(p)) for p in placed)
    high = max(float(np.nanmax(p)) for p in placed)
    rows = np.linspace(low, high, LEVELS)
    width = SMOOTHED * max(rows[1] - rows[0], 1e-12)
    columns = []
    for p, q in zip(placed, quadratures, strict=True):
        kernel = np.exp(-0.5 * ((rows[:, None] - p) / width) ** 2)
        kernel /= np.maximum(kernel.sum(axis=0), 1e-300)  # every node adds its weight
        columns.append(np.nansum(kernel * q[1], axis=1))
    return np.stack(columns, axis=1), rows, unit


def _map(steps: NDArray[np.int64], quadratures: list[NDArray[np.float64]]) -> Panel:
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(STEPS, len(steps))).round().astype(int))
    density, rows, unit = density_rows([quadratures[i] for i in chosen])
    with np.errstate(divide="ignore"):
        shade = np.maximum(np.log10(density), -DECADES)
    ticks = _ticks(float(rows[0]), float(rows[-1]), unit)
    figure: Figure = {
        "type": "heatmap", "x": [int(s) for s in steps[chosen]], "y": plain(rows),
        "z": [plain(row) for row in shade], "zmin": -DECADES, "zmax": 0, "colorscale": SCALE,
        "hovertemplate": "step %{x}: share 10^%{z:.1f}<extra></extra>",
        "colorbar": {
            "thickness": 9, "outlinewidth": 0, "tickvals": list(range(-DECADES, 1)),
            "ticktext": [f"10{raised(n)}" if n else "1" for n in range(-DECADES, 1)],
        },
    }  # fmt: skip
    layout: Figure = {
        "xaxis": {"title": {"text": "step"}, "showgrid": False},
        "yaxis": {
            "showgrid": False, "zeroline": False, "automargin": True,
            "title": {"text": "eigenvalue (loss per parameter²)"},
            "tickvals": [at for at, _ in ticks], "ticktext": [text for _, text in ticks],
        },
    }  # fmt: skip
    reading = (
        "Share of the eigenvalues near each value, by stochastic Lanczos quadrature; the axis is "
        "linear near zero and logarithmic beyond. The bulk is the dark band, the lines above it "
        "are outlying directions."
    )
    return Panel(
        slug="density",
        title="Density of the Hessian's eigenvalues",
        reading=reading,
        figure={"data": [figure], "layout": layout},
    )


def _ticks(low: float, high: float, unit: float) -> list[tuple[float, str]]:
    """Zero and the powers of ten within the axis, as positions and words."""
    powers = [n for n in range(-30, 31) if unit <= 10.0**n]
    positive = [(float(np.arcsinh(10.0**n / unit)), f"10{raised(n)}") for n in powers]
    negative = [(-at, f"−{text}") for at, text in reversed(positive)]
    return [(at, t) for at, t in (*negative, (0.0, "0"), *positive) if low <= at <= high]
