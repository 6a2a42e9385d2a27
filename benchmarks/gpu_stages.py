"""The stages of `gpu.py`: each yields names and what was found under them."""

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from gpu_models import Task, gpt, pictures
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import eqtoolbox as eq
from eqtoolbox.linalg import hessian, top_eigenpairs
from eqtoolbox.linalg.vectors import random_like
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.sinks.memory import MemorySink
from eqtoolbox.symmetry import Cyclic, Equivariance, actions, equivariance_error

Found = Iterator[tuple[str, Any]]
Stage = Callable[[str, bool], Found]
GIB = 2**30


def exact(device: str, tiny: bool) -> Found:
    """Top eigenvalues of a small network against the dense Hessian in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)).to(device)
    x, y = torch.randn(64, 8, device=device), torch.randint(3, (64,), device=device)
    params = {n: p.detach() for n, p in model.named_parameters()}

    def loss(given: Any) -> torch.Tensor:
        inputs = x.to(next(iter(given.values())).dtype)
        return F.cross_entropy(functional_call(model, given, (inputs,)), y)

    found = top_eigenpairs(hessian(loss, params), 3, tol=1e-5)
    sizes = [p.numel() for p in params.values()]

    def flat(vector: torch.Tensor) -> torch.Tensor:
        parts = zip(params.items(), vector.split(sizes), strict=True)
        return loss({n: v.view(p.shape) for (n, p), v in parts})

    whole = torch.cat([p.reshape(-1) for p in params.values()]).double()
    dense = torch.linalg.eigvalsh(torch.func.hessian(flat)(whole)).flip(0)[:3]
    yield "values", found.values.tolist()
    yield "off_dense_float64", float(((found.values.to(dense) - dense) / dense).abs().max())


def neutral(device: str, tiny: bool) -> Found:
    """Whether training ends the same to the last bit, under deterministic algorithms."""
    torch.use_deterministic_algorithms(True)
    half = [torch.float16] if device == "cuda" else []
    for make in (pictures, gpt):
        for autocast in (None, torch.bfloat16, *half):
            ends = []
            for probes in ("standard", None):
                task = make(device, True, autocast)
                scaler = torch.amp.GradScaler(device, enabled=autocast == torch.float16)
                train(task, 6, probes, scaler, schedule=3, budget=None)
                ends.append([p.detach().clone() for p in task.model.state_dict().values()])
            same = all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
            yield f"{task.name}, {str(autocast or torch.float32).removeprefix('torch.')}", same


def equivariance(device: str, tiny: bool) -> Found:
    """A group of four elements, the identity among them, in forwards without gradient."""
    turn = Equivariance(Cyclic(4), actions.quarter_turn, actions.trivial)
    for name, count in (("small", 8), ("large", 8 if tiny else 256)):
        task = pictures(device, tiny or name == "small", None)
        model, x = task.model.eval(), task.batches[0][0][:count]
        with torch.no_grad():
            forward = seconds(lambda model=model, x=x: model(x), device)
        whole = seconds(
            lambda model=model, x=x: equivariance_error(model, x, turn, check=False), device
        )
        yield f"four_elements_in_forwards, {name}", whole / forward


def product(device: str, tiny: bool) -> Found:
    """One Hessian product in gradients of the same loss, and the memory beside it."""
    for make in (gpt, pictures):
        task = make(device, tiny, None)
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            for retain in (True, False):
                kind = "retained" if retain else "rebuilt"
                yield f"{task.name}, {kind}", one_product(task, device, retain)


def one_product(task: Task, device: str, retain: bool) -> dict[str, float]:
    """Of a task's loss, exact."""
    (x, y), params = task.batches[0], dict(task.model.named_parameters())

    def loss(given: Any) -> torch.Tensor:
        return F.cross_entropy(functional_call(task.model, given, (x,)), y)

    gradient = seconds(lambda: torch.autograd.grad(loss(params), list(params.values())), device)
    own, v = peak(device), random_like(params, torch.Generator().manual_seed(0))
    with hessian(loss, params, retain=retain) as operator:
        found = seconds(lambda: operator(v), device)
    return {"gradients": found / gradient, "gradient_gib": own, "gib": peak(device)}


def charges(device: str, tiny: bool) -> Found:
    """Conservation at every step: what it adds to a step, and to memory.

    Steps that are waited for one by one, each of which records budgets, too, as the first do; and
    steps that run as a loop runs them, where nobody waits, which record drifts and laws.
    """
    task = gpt(device, tiny)
    plain = train(task, 12, None)
    own = peak(device)
    watched = train(gpt(device, tiny), 12, [Conservation()], schedule=1, budget=None)
    added = statistics.median(watched[2:]) - statistics.median(plain[2:])
    yield "set_up_in_steps", watched[0] / statistics.median(plain[2:])
    yield "milliseconds_a_step", 1e3 * added
    yield "in_steps", added / statistics.median(plain[2:])
    yield "gib", {"training": own, "with": peak(device)}
    few, many, seldom = 4, 24, [Conservation(growth=100.0)]
    for schedule in (1, 10):
        each = {}
        for probes in (None, seldom):
            took = train(gpt(device, tiny), many, probes, free=few, schedule=schedule, budget=None)
            each[probes is None] = sum(took[few:]) / (many - few)
        added = each[False] - each[True]
        yield (
            f"free_schedule_{schedule}",
            {"milliseconds": 1e3 * added, "in_steps": added / each[True]},
        )


def defaults(device: str, tiny: bool) -> Found:
    """The standard preset as it comes: the whole run over one without, the longest step, memory."""
    for make in (pictures, gpt):
        steps = 12 if tiny else 150
        plain = train(make(device, tiny), steps, None)
        own, sink = peak(device), MemorySink()
        task = make(device, tiny)
        watched = train(task, steps, "standard", sinks=[sink])
        names = ("curvature/sharpness", "noether/second_order", "conservation/drift")
        points = {n: len({r.step for r in sink.records if r.name.startswith(n)}) for n in names}
        found = {
            "whole_run": sum(watched) / sum(plain),
            "extra_seconds": sum(watched) - sum(plain),
            "longest_step_in_steps": max(watched) / statistics.median(plain),
            "gib": {"training": own, "with": peak(device)},
            "steps_with_points": points,
            "failed": sorted({r.name for r in sink.records if r.status == "failed"}),
        }
        yield task.name, found


def memory(device: str, tiny: bool) -> Found:
    """A device without room for a probe: training goes on, and the probe says why it does not."""
    task = pictures(device, tiny)
    train(task, 3, None)
    if device == "cuda":
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(1.1 * peak(device) * GIB / whole)
    sink = MemorySink()
    train(task, 4, [Curvature(k=1)], schedule=2, budget=None, sinks=[sink])
    notes = {r.note for r in sink.records if "memory" in r.note}
    yield "steps_trained", 4
    yield "said", sorted(notes)


def train(
    task: Task,
    steps: int,
    probes: Any,
    scaler: torch.amp.GradScaler | None = None,
    free: int | None = None,
    **options: Any,
) -> list[float]:
    """Seconds of every step; nothing is attached where there are no probes.

    From step `free` on nobody waits for the device before the last one.
    """
    device = task.batches[0][0].device.type
    optimizer, monitor, loss = task.optimizer(), None, task.loss
    scaler = scaler or torch.amp.GradScaler(device, enabled=False)
    reset(device)
    if probes is not None:
        options = {"sinks": [MemorySink()], **options}
        monitor = eq.attach(task.model, optimizer, probes=probes, **options)
        loss = monitor.loss(loss)
    spent = []
    for batch in islice(cycle(task.batches), steps):
        waits = free is None or len(spent) <= free
        began = clock(device) if waits else time.perf_counter()
        scaler.scale(loss(task.model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        last = len(spent) == steps - 1
        spent.append((clock(device) if last or waits else time.perf_counter()) - began)
    if monitor is not None:
        monitor.close()
    return spent


def seconds(case: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Median time of a call, after two more."""
    reset(device)
    times = []
    for k in range(-2, repeats):
        began = clock(device)
        case()
        times += [clock(device) - began] if k >= 0 else []
    return statistics.median(times)


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def reset(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> float:
    """Largest memory since `reset`, in GiB; 0 where it is not counted."""
    return torch.cuda.max_memory_allocated() / GIB if device == "cuda" else 0.0


STAGES: dict[str, Stage] = {
    stage.__name__: stage
    for stage in (exact, neutral, equivariance, product, charges, defaults, memory)
}
