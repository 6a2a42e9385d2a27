"""A plan as a table for the terminal and as JSON values."""

from typing import Any

from eqtoolbox.command.plan.choice import choice
from eqtoolbox.command.plan.setting import GIB, Training
from eqtoolbox.command.plan.taken import Expense, measurements

BY_FORMULA = "*"


def text(training: Training) -> str:
    """A row a measurement, then what the marks mean and what to use."""
    rows = measurements()
    wide = max(len(row.name) for row in rows) + 2
    head = f"{'':{wide}} {'GiB':>8} {'x peak':>7} {'steps':>8} {'traffic':>8} {'5 %':>8}"
    head = head.replace("5 %", f"{training.budget:.2g}" if training.budget != 0.05 else "5 %")
    lines = [_said(training), "", f"{head}  {training.memory:g} GiB  at every {training.every:,}"]
    for row in rows:
        mark = "" if row.known(training) else BY_FORMULA
        apart = row.apart(training)
        share = max(row.work(training), row.traffic(training)) / training.every
        lines.append(
            f"{row.name + mark:{wide}} {_short(row.bytes(training) / GIB):>8} "
            f"{row.peak(training):7.2f} {_short(row.work(training)):>8} "
            f"{_short(row.traffic(training)):>8} {'each' if apart == 1 else f'{apart:,}':>8}  "
            f"{'fits' if row.fits(training) else 'too much':<{len(f'{training.memory:g} GiB')}}  "
            f"{share:.2%}"
        )
    lines += [
        "",
        "GiB a rank beside training; x peak, of the whole over that of a training step; steps, its",
        "operations in those of one; traffic, bytes received in those of one; how many steps apart",
        "it stays within the budget; what it adds to training time at the steps asked for.",
        f"{BY_FORMULA} by formula only, never measured; traffic is by formula in all rows.",
        "",
        f"use: {choice(training, rows)}",
    ]
    return "\n".join(lines)


def data(training: Training) -> dict[str, Any]:
    """The plan as JSON values, with all numbers."""
    rows = measurements()
    return {
        "parameters": training.network.parameters,
        "ranks": training.ranks,
        "sharding": training.sharding,
        "sharers": training.sharers,
        "held_bytes": training.held,
        "peak_bytes": training.peak,
        "traffic_bytes": training.traffic(probe=False),
        "rows": [_row(row, training) for row in rows],
        "use": choice(training, rows),
    }


def _row(row: Expense, training: Training) -> dict[str, Any]:
    return {
        "name": row.name,
        "bytes": row.bytes(training),
        "times_peak": row.peak(training),
        "steps": row.work(training),
        "traffic": row.traffic(training),
        "steps_apart": row.apart(training),
        "fits": row.fits(training),
        "measured": row.known(training),
    }


def _said(training: Training) -> str:
    """The training in one line."""
    many = f"{training.ranks} ranks" if training.ranks > 1 else "1 rank"
    return (
        f"{_size(training.network.parameters)} parameters, {many} {training.sharding}, "
        f"{training.precision}, {training.optimizer}: a step holds {training.held / GIB:.1f} GiB a "
        f"rank and peaks at {training.peak / GIB:.1f}"
    )


def _size(count: float) -> str:
    """A number with the letter of its thousands."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return f"{count:.3g}"


def _short(number: float) -> str:
    """Three digits at most, and no more than two behind the point."""
    return (
        f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
    )
