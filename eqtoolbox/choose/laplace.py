"""Evidence: how probable a trained network makes the data, complexity paid for (Laplace)."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from eqtoolbox.choose.learning import Learning
from eqtoolbox.expect.deadline import check
from eqtoolbox.replay.gradients import valued

LARGEST = 2**27  # numbers of a Jacobian, held in float32
ROWS = 2500  # outputs of all samples together
_WIDTH = 2**14  # columns that are multiplied at once
_PRECISIONS = torch.logspace(-2, 3, 26, dtype=torch.float64)


def evidence(network: nn.Module, learning: Learning) -> tuple[float | None, str]:
    """Log evidence a sample in nats of a trained network; or None and why not.

        log p(D) = log p(D | w) - d |w|^2 / 2 - log det(1 + K / d) / 2,    K = L^1/2 J J^T L^1/2

    of the network linearised at w, J its Jacobian by weights over all samples and outputs, L the
    second derivative of the loss by the outputs, d the precision of the prior that makes it
    largest; values have noise of the size of what is left over.

    The evidence of a very small network is near that of a constant answer, an underfit, and it then
    prefers what tests worse. Read it beside a held-out gain, never alone.

    Args:
        network: trained on all samples of `learning`.
        learning: of labels, or of one tensor of values.

    Reference: Immer et al. 2021, arXiv 2106.10165; 2022, arXiv 2202.10638.
    """
    x, y = learning.inputs, learning.targets
    if not isinstance(y, Tensor) or not isinstance(x, Tensor):
        return None, "evidence is not computed for several tensors"
    if learning.own_loss:
        return None, "evidence is not computed for a loss of one's own, which may be no likelihood"
    outputs = learning.classes or y[0].numel()
    size = sum(p.numel() for p in network.parameters() if p.requires_grad)
    if len(x) * outputs > ROWS or len(x) * outputs * size > LARGEST:
        return None, (
            f"evidence is not computed: {len(x)} samples of {outputs} outputs and {size:,} weights "
            "are too many"
        )
    doubled = copy.deepcopy(network).double().eval()
    _baked(doubled)
    weights = [p for p in doubled.parameters() if p.requires_grad]
    x = x.double()
    with torch.no_grad():
        z = valued(doubled, x).flatten(1)
    likelihood, root = (_of_labels if learning.classes else _of_values)(z, y)
    rows = _scaled(doubled, x, root, weights)
    rows = rows if rows.shape[0] <= rows.shape[1] else rows.T  # of one spectrum but for zeros
    parts = (part.double() for part in torch.split(rows, _WIDTH, 1))
    kernel = sum((part @ part.T for part in parts), torch.zeros_like(z[0, 0]))
    if not bool(torch.isfinite(kernel).all()):
        return None, "evidence is not computed: derivatives are not finite"
    spectrum = torch.linalg.eigvalsh(kernel).clamp_min(0).cpu()
    norm = float(sum((w.detach().square().sum() for w in weights), torch.zeros(())))
    d = _PRECISIONS
    found = likelihood - d * norm / 2 - torch.log1p(spectrum[:, None] / d).sum(0) / 2
    return float(found.max()) / len(x), ""


def _scaled(network: nn.Module, x: Tensor, root: Tensor, weights: list[nn.Parameter]) -> Tensor:
    """L^1/2 J of all samples and outputs, (n k, p), in float32."""
    rows = []
    for one, scale in zip(x[:, None], root, strict=True):
        check()
        z = network(one).flatten()
        parts = torch.autograd.grad(z, weights, scale, is_grads_batched=True, allow_unused=True)
        flat = [
            torch.zeros(len(z), w.numel()).to(z) if p is None else p.reshape(len(z), -1)
            for p, w in zip(parts, weights, strict=True)
        ]
        rows.append(torch.cat(flat, 1).float())
    return torch.cat(rows)


@torch.no_grad()
def _baked(network: nn.Module) -> None:
    """Parametrised weights as they are seen: what an average leaves out has no say in the prior."""
    for module in network.modules():
        if parametrize.is_parametrized(module):
            held: Any = module.parametrizations
            for name, one in held.items():
                if isinstance(getattr(one, "original", None), Tensor):
                    seen = getattr(module, name).clone()
                    one.original.copy_(seen)
                    again = getattr(module, name)  # times a gain, if there is one
                    one.original.mul_(seen.square().sum() / (seen * again).sum())


def _of_labels(z: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """Log likelihood, and R with R^T R = diag(p) - p p^T, (n, k, k)."""
    p = z.softmax(1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None])
    root = (vectors * values.clamp_min(0).sqrt()[:, None]).mT
    return -float(nn.functional.cross_entropy(z, y, reduction="sum")), root


def _of_values(z: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """Log likelihood under Gaussian noise as large as what is left, and 1 / its deviation."""
    left = (z - y.flatten(1).double()).square()
    noise = max(float(left.mean()), 1e-12 * float(y.double().square().mean()))
    likelihood = -0.5 * left.numel() * (math.log(2 * math.pi * noise) + float(left.mean()) / noise)
    root = torch.eye(z.shape[1]).to(z).expand(len(z), -1, -1) / math.sqrt(noise)
    return likelihood, root
