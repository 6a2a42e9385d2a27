"""Overhead of the presets on the demo's network, and what each probe costs in gradients.

Claim: `light`, `standard` and `full` slow training down by the printed factors (medians over
interleaved repeats, one process), and an undue step costs microseconds. Those are measured in
blocks of steps with and without in turn, in processor time, beside a second run without: whole
runs, one after the other, differ by more than that among themselves.

    python benchmarks/overhead.py
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import cycle

import torch
import torch.nn.functional as F
from environment import store
from torch import nn

import eqtoolbox as eq
from eqtoolbox.attach.config import resolve
from eqtoolbox.demos.demo import batches
from eqtoolbox.demos.digits import DigitNet, load_digits
from eqtoolbox.sinks.memory import MemorySink

STEPS, REPEATS = 401, 3
BLOCK, BLOCKS = 25, 60
Batch = tuple[torch.Tensor, torch.Tensor]


def loss_fn(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def seconds(probes: str | None, schedule: int | None = None, budget: float | None = None) -> float:
    """Wall time of one training run behind its first step, which holds the set-up."""
    torch.manual_seed(0)
    model, data = DigitNet(), list(batches(load_digits().train, 128, STEPS, 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = None
    if probes is not None:
        monitor = eq.attach(model, optimizer, probes=probes, schedule=schedule, budget=budget)
    step_loss = monitor.loss(loss_fn) if monitor else loss_fn
    start = 0.0
    for step, batch in enumerate(data):
        if step == 1:
            start = time.perf_counter()
        step_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    elapsed = time.perf_counter() - start
    if monitor:
        monitor.close()
    return elapsed


def idle_microseconds() -> tuple[float, float]:
    """What a step that is not due adds, and the same of a second training without."""
    watched, plain, other = (trainer(attached) for attached in (True, False, False))
    times: dict[Callable[[], None], list[float]] = {watched: [], plain: [], other: []}
    for block in range(-1, BLOCKS):
        order = list(times)
        for step in order[block % 3 :] + order[: block % 3]:
            start = time.process_time()
            for _ in range(BLOCK):
                step()
            if block >= 0:
                times[step].append((time.process_time() - start) / BLOCK * 1e6)

    def added(step: Callable[[], None]) -> float:
        return statistics.median(a - b for a, b in zip(times[step], times[plain], strict=True))

    return added(watched), added(other)


def trainer(attached: bool) -> Callable[[], None]:
    """One training step of the demo's network; the first step, which is due, lies behind it."""
    torch.manual_seed(0)
    model, stream = DigitNet(), cycle(list(batches(load_digits().train, 128, 50, 0)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step_loss = loss_fn
    if attached:
        step_loss = eq.attach(model, optimizer, schedule=10**9, budget=None).loss(loss_fn)

    def step() -> None:
        step_loss(model, next(stream)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return step


def gradient_seconds(model: nn.Module, stream: Iterator[Batch]) -> float:
    times = []
    for _ in range(30):
        batch = next(stream)
        start = time.perf_counter()
        torch.autograd.grad(loss_fn(model, batch), list(model.parameters()))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def probe_costs() -> dict[str, float]:
    """Median cost of each probe of the standard preset, in gradients of the same batch."""
    torch.manual_seed(0)
    model, sink = DigitNet(), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stream = cycle(batches(load_digits().train, 128, 50, 0))
    with eq.attach(model, optimizer, schedule=5, budget=None, sinks=[sink]) as monitor:
        step_loss = monitor.loss(loss_fn)
        for _ in range(60):
            step_loss(model, next(stream)).backward()
            optimizer.step()
            optimizer.zero_grad()
    spent = defaultdict(list)
    for record in sink.records:
        if record.name.startswith("cost/seconds/") and record.step > 0:
            spent[record.name.removeprefix("cost/seconds/")].append(record.value)
    gradient = gradient_seconds(model, stream)
    return {name: statistics.median(times) / gradient for name, times in spent.items()}


def main() -> None:
    cases = {
        "without": (None, None, None),
        "light": ("light", None, None),
        "standard": ("standard", None, None),
        "full": ("full", None, None),
        "standard, budget 5 %": ("standard", None, 0.05),
    }
    seconds("standard")
    times = defaultdict(list)
    for repeat in range(REPEATS):
        for name, (probes, schedule, budget) in cases.items():
            if repeat == 0 or probes != "full":  # a minute each
                times[name].append(seconds(probes, schedule, budget))
    base = statistics.median(times["without"])
    ratios = {n: statistics.median(t) / base for n, t in times.items()}
    idle, noise = idle_microseconds()
    costs = probe_costs()
    print(f"one step without: {base / STEPS * 1e3:.2f} ms; attached and not due: {idle:+.0f} us")
    print(f"a second training without: {noise:+.0f} us")
    for name, ratio in ratios.items():
        print(f"{name:24s} {ratio:6.3f} x")
    for name, cost in costs.items():
        print(f"probe {name:18s} {cost:6.1f} gradients")
    schedules = {s.probe.name: repr(s.schedule) for s in resolve("standard")}
    print(
        store(
            "overhead",
            {
                "step_seconds": base / STEPS,
                "idle_microseconds": idle,
                "idle_noise_microseconds": noise,
                "ratios": ratios,
                "probe_cost_in_gradients": costs,
                "standard": schedules,
            },
        )
    )


if __name__ == "__main__":
    main()
