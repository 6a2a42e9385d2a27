"""Published results about moving parameters along symmetries: compression, averaging, speed."""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from experiments import Experiment, Figures, Values, accuracy, digits, mean, perceptron
from torch import Tensor, nn
from torch.func import functional_call

import eqtoolbox as eq
from eqtoolbox.demos.demo import batches
from eqtoolbox.weights.orbit.canonical import canonical
from eqtoolbox.weights.parameter import ContinuousSymmetry

BITS = (8, 4, 3)
WIDTHS = (32, 128, 512)
RATES = (0.1, 0.3, 0.6, 1.0)
DEEP_RATES = (0.02, 0.05, 0.1, 0.2)
CUT = 0.3  # training loss to reach
ASCENT = 5  # steps towards the largest gradient, three gradients each


def rescalings(model: nn.Module) -> list[ContinuousSymmetry]:
    """Those that are found and verified in the loss on digits."""
    images, labels = digits()[0]
    found = eq.weights.discover(model, (images[:64], labels[:64]))
    return [s for s in found if s.family == "rescale" and s.status == "verified"]


def fitted(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> nn.Module:
    """The model after training on digits, in evaluation mode."""
    for images, labels in batches(digits()[0], 128, steps, seed):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def quantised(model: nn.Module, bits: int) -> nn.Module:
    """Every matrix rounded to whole multiples of its largest entry over 2^(bits - 1) - 1."""
    found, most = copy.deepcopy(model), 2 ** (bits - 1) - 1
    for p in found.parameters():
        if p.dim() > 1:
            step = p.abs().max() / most
            p.copy_((p / step).round().clamp(-most, most) * step)
    return found


def equalised(seed: int, steps: int = 600) -> Figures:
    """Test accuracy of quantised networks: as trained, moved along the orbit, and balanced."""
    train, test = digits()
    model = perceptron((64, 64, 64, 64, 10), nn.ReLU, seed)
    fitted(model, torch.optim.Adam(model.parameters(), lr=2e-3), steps, seed)
    found: Figures = {"float": accuracy(model, test)}
    few, rng = (train[0][:256], train[1][:256]), torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(model)
    for symmetry in rescalings(moved):
        eq.act.move(moved, symmetry, torch.randn(symmetry.dimension, generator=rng))
    for name, start in (("unbalanced channels", moved), ("as trained", model)):
        balanced = copy.deepcopy(start)
        eq.act.balance(balanced, few, curvature=False)
        for bits in BITS:
            found[f"{name}, int{bits}"] = accuracy(quantised(start, bits), test)
            found[f"{name}, int{bits}, balanced"] = accuracy(quantised(balanced, bits), test)
    return found


def rebasin(seed: int, steps: int = 800) -> Figures:
    """Loss barrier on test data between two trainings, and after alignment, by width."""
    train, test = digits()
    found: Figures = {}
    for width in WIDTHS:
        one, two = (perceptron((64, width, width, 10), nn.ReLU, 2 * seed + k) for k in (0, 1))
        for k, model in enumerate((one, two)):
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            fitted(model, optimizer, steps, 2 * seed + k)
        found[f"barrier, width {width}"] = eq.act.barrier(one, two, test).barrier
        eq.act.align(two, one, (train[0][:64], train[1][:64]))
        found[f"barrier, width {width}, aligned"] = eq.act.barrier(one, two, test).barrier
    return found


def teleported(
    model: nn.Module, batch: tuple[Tensor, Tensor], symmetries: Sequence[ContinuousSymmetry]
) -> None:
    """Move to where the gradient is larger on the orbit, by ascent of log |g|² within |c| <= 1."""
    params = {n: p.detach() for n, p in model.named_parameters()}
    elements = [torch.zeros(s.dimension, requires_grad=True) for s in symmetries]
    for _ in range(ASCENT):
        moved = {n: p.clone().requires_grad_() for n, p in params.items()}
        for symmetry, element in zip(symmetries, elements, strict=True):
            moved |= symmetry.transform(moved, element)
        loss = F.cross_entropy(functional_call(model, moved, (batch[0],)), batch[1])
        gradient = torch.autograd.grad(loss, list(moved.values()), create_graph=True)
        size = sum(g.square().sum() for g in gradient).log()
        slopes = torch.autograd.grad(size, elements)
        scale = 0.1 * math.sqrt(sum(len(c) for c in elements)) / (torch.cat(slopes).norm() + 1e-12)
        with torch.no_grad():
            for element, slope in zip(elements, slopes, strict=True):
                element.add_(scale * slope).clamp_(-1, 1)
    for symmetry, element in zip(symmetries, elements, strict=True):
        eq.act.move(model, symmetry, element.detach())


def descended(
    seed: int, lr: float, at: Sequence[int], steps: int = 300
) -> tuple[float, float, float]:
    """Loss at the end, gradients to `CUT`, and by what the first teleport multiplied |g|."""
    images, labels = digits()[0]
    batch = (images[:1024], labels[:1024])
    model = perceptron((64, 64, 64, 10), nn.ReLU, seed)
    symmetries = rescalings(model) if at else []
    cost, reached, gain = 0, math.inf, math.nan

    def gradient() -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss.detach(), torch.autograd.grad(loss, list(model.parameters()))

    size = lambda: math.sqrt(sum(float(g.square().sum()) for g in gradient()[1]))
    for step in range(steps):
        if step in at:
            before, cost = size(), cost + 3 * ASCENT
            teleported(model, batch, symmetries)
            gain = size() / before if math.isnan(gain) else gain
        loss, slopes = gradient()
        cost += 1
        if not math.isfinite(float(loss)):
            return math.inf, math.inf, gain
        reached = min(reached, cost if loss < CUT else math.inf)
        with torch.no_grad():
            for p, g in zip(model.parameters(), slopes, strict=True):
                p.sub_(lr * g)
    return float(loss), reached, gain


def teleport(seed: int) -> Figures:
    """Gradients to a loss at the best of several rates, and the loss at a small rate."""
    found: Figures = {}
    for name, at in (("none", ()), ("one at the start", (0,)), ("five", (0, 20, 40, 60, 80))):
        runs = [descended(seed, lr, at) for lr in RATES]
        found[f"gradients to loss {CUT} at the best rate, {name}"] = min(r[1] for r in runs)
        found[f"loss after 300 steps at η = 0.03, {name}"] = descended(seed, 0.03, at)[0]
        if at:
            found[f"gradient after over before the first, {name}"] = runs[0][2]
    return found


def normed(seed: int, steps: int = 300, rates: Sequence[float] = DEEP_RATES) -> Figures:
    """Loss and accuracy of a deep network whose weights are balanced never, or every few steps."""
    found: Figures = {}
    train, test = digits()
    for every in (0, 1, 10):
        ends = []
        for lr in rates:
            model = perceptron((64, *[48] * 8, 10), nn.ReLU, seed)
            for p in model.parameters():
                if p.dim() > 1:
                    nn.init.kaiming_normal_(p)
            symmetries = rescalings(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=1e-3)
            for step, (x, y) in enumerate(batches(train, 64, steps, seed), 1):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                if every and step % every == 0:
                    _balanced(model, symmetries)
            with torch.no_grad():
                loss = float(F.cross_entropy(model(train[0]), train[1]))
            ends.append((loss if math.isfinite(loss) else math.inf, accuracy(model, test)))
        loss, right = min(ends)
        name = f"every {every} steps" if every > 1 else ("never", "every step")[every]
        found[f"loss, balanced {name}"] = loss
        found[f"test accuracy, balanced {name}"] = right
    return found


@torch.no_grad()
def _balanced(model: nn.Module, symmetries: Sequence[ContinuousSymmetry]) -> None:
    own = dict(model.named_parameters())
    for name, value in canonical(symmetries, own, max_rounds=1).params.items():
        own[name].copy_(value)


def restores(found: Values) -> str:
    """Whether balanced channels bring int8 back, and whether an ordinary network gains."""
    value = lambda key: mean(found[key])
    lost = value("float") - value("unbalanced channels, int8") > 0.02
    back = value("float") - value("unbalanced channels, int8, balanced") < 0.005
    gain = value("as trained, int8, balanced") - value("as trained, int8")
    more = "an ordinary network gains, too" if gain > 0.005 else "an ordinary network gains nothing"
    return f"reproduced; {more}" if lost and back else "not reproduced"


def lowers(found: Values) -> str:
    """Aligned, less than a fifth of the barrier is left at each width, and less of it when wide."""
    naive, aligned = ([mean(v) for v in list(found.values())[k::2]] for k in (0, 1))
    low = all(a < 0.2 * b for a, b in zip(aligned, naive, strict=True))
    return "reproduced" if low and aligned[-1] < aligned[0] else "not reproduced"


def gains(found: Values) -> str:
    """Whether teleports save gradients where the rate is tuned, and whether at a small rate."""
    tuned = [mean(v) for key, v in found.items() if key.startswith("gradients")]
    small = [mean(v) for key, v in found.items() if key.startswith("loss")]
    at_small = "helps at a small rate" if small[1] < small[0] else "does not help at a small rate"
    saves = min(tuned[1:]) < 0.95 * tuned[0]
    return "reproduced" if saves else f"not reproduced where the rate is tuned; {at_small}"


def trains(found: Values) -> str:
    """In how many runs balancing at every step has a lower loss, and more test accuracy."""
    pairs = lambda kind: zip(
        found[f"{kind}, balanced never"], found[f"{kind}, balanced every step"], strict=True
    )
    lower = [b < a for a, b in pairs("loss")]
    right = [b > a for a, b in pairs("test accuracy")]
    if all(lower) and all(right):
        return "reproduced"
    told = f"lower loss in {sum(lower)}, more accuracy in {sum(right)} of {len(lower)} runs"
    return f"not reproduced: {told}"


EXPERIMENTS = (
    Experiment(
        name="equalisation before quantisation",
        claim="channels made equal by rescaling bring back the accuracy of int8",
        paper="Nagel et al. 2019, arXiv 1906.04721",
        reference="MobileNetV2, int8: 0.1 % before, 69.9 % after, 71.7 % float",
        note="ReLU 64-64-64-64-10 on digits, one scale a matrix; unbalanced by `act.move` with "
        "c ~ N(0, 1) for each unit; `act.balance` on 256 images, which leaves a unit that none of "
        "them lights as it is; test accuracy",
        runs=(equalised,),
        judge=restores,
    ),
    Experiment(
        name="re-basin against width",
        claim="units of two trainings can be permuted so that hardly a barrier is left; wide "
        "networks have less of it",
        paper="Ainsworth et al. 2023, arXiv 2209.04836",
        reference="barrier zero for a wide ResNet20 on CIFAR-10; falls with width",
        note="ReLU 64-w-w-10 on digits, two seeds each; `act.align`, `act.barrier` on test data",
        runs=(rebasin,),
        judge=lowers,
    ),
    Experiment(
        name="teleportation",
        claim="a move along the orbit to a larger gradient gives faster time to convergence",
        paper="Zhao et al. 2023, arXiv 2305.13404",
        reference="faster overall",
        note="ReLU 64-64-64-10, 1,024 digits, full batch; best of rates "
        f"{', '.join(map(str, RATES))}; a teleport costs 15 gradients; `act.move`",
        runs=(teleport,),
        judge=gains,
    ),
    Experiment(
        name="balance while training",
        claim="balancing the weights at every step trains better than plain SGD",
        paper="Stock et al. 2019, arXiv 1902.10416 (ENorm)",
        reference="better than SGD on CIFAR-10 and ImageNet",
        note="ReLU, eight layers of 48, decay 0.001, batch 64, 300 steps, the best of rates "
        f"{', '.join(map(str, DEEP_RATES))} by training loss",
        runs=(normed,),
        judge=trains,
        seeds=5,
    ),
)
