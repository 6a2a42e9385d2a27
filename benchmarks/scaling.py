"""Claim: the cost of a product, and of a Lanczos step, is linear in the number of parameters.

MLPs of four equal layers from 1e5 to 3e7 parameters on a fixed batch; the exponent is that of a
least-squares line through log time against log parameters.

    python benchmarks/scaling.py
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from environment import store
from timing import begin, interleaved
from torch import Tensor, nn
from torch.func import functional_call

from eqtoolbox.linalg import hessian, top_eigenpairs
from eqtoolbox.linalg.vectors import random_like

SIZES = (1e5, 3e5, 1e6, 3e6, 1e7, 3e7)
BATCH, STEPS = 128, 10


def measured(parameters: float) -> dict[str, Any]:
    """Seconds of a gradient, a product and a Lanczos step at about that many parameters."""
    torch.manual_seed(0)
    width = round((parameters / 4) ** 0.5)
    layers = [m for _ in range(4) for m in (nn.Linear(width, width), nn.Tanh())]
    model = nn.Sequential(*layers[:-1])
    inputs, targets = torch.randn(BATCH, width), torch.randn(BATCH, width)
    params = dict(model.named_parameters())

    def loss(p: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(functional_call(model, p, inputs), targets)

    H = hessian(loss, params)
    v = random_like(params, torch.Generator().manual_seed(1))
    cases = {
        "gradient": lambda: torch.autograd.grad(loss(params), list(params.values())),
        "product": lambda: H(v),
        "steps": lambda: top_eigenpairs(H, 1, tol=1e-12, max_matvecs=STEPS, confirm=0),
    }
    repeats = 5 if parameters > 5e6 else 15
    times = interleaved(cases, repeats=repeats, warmup=1)
    return {
        "parameters": sum(p.numel() for p in params.values()),
        "gradient_seconds": times.seconds("gradient"),
        "product_seconds": times.seconds("product"),
        "lanczos_step_seconds": times.seconds("steps") / STEPS,
    }


def exponent(rows: list[dict[str, Any]], quantity: str) -> float:
    """Slope of log quantity against log parameters."""
    x, y = (np.log([row[name] for row in rows]) for name in ("parameters", quantity))
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    machine, rows = begin(), []
    for size in SIZES:
        row = measured(size)
        rows.append(row)
        print(
            f"{row['parameters']:9d} parameters: gradient {1e3 * row['gradient_seconds']:8.2f} ms,",
            end=" ",
        )
        print(f"product {1e3 * row['product_seconds']:8.2f} ms,", end=" ")
        print(f"Lanczos step {1e3 * row['lanczos_step_seconds']:8.2f} ms", flush=True)
    fits = {
        quantity: exponent(rows, quantity)
        for quantity in ("gradient_seconds", "product_seconds", "lanczos_step_seconds")
    }
    for quantity, fit in fits.items():
        print(f"exponent of {quantity}: {fit:.3f}")
    print(store("scaling", {"machine": machine, "rows": rows, "exponents": fits}))


if __name__ == "__main__":
    main()
