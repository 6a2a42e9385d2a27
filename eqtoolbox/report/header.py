"""The header: what was trained, how, how long and when, and with which versions."""

import datetime
from collections.abc import Iterator
from typing import Any

from eqtoolbox.report.log import Log
from eqtoolbox.report.words import number, percent, plural


def facts(run: Log) -> Iterator[tuple[str, str]]:
    """What was trained, how, how long, when, as pairs of a word and what it is."""
    info, model = run.info, run.info.get("model") or {}
    if model.get("class"):
        yield "model", str(model["class"])
    if "parameters" in model:
        frozen = model["parameters"] - model.get("trainable", model["parameters"])
        yield "parameters", f"{model['parameters']:,}" + (f" ({frozen:,} frozen)" if frozen else "")
    optimizer = info.get("optimizer") or {}
    if optimizer:
        yield "optimizer", f"{optimizer.get('class')}{_options(optimizer.get('groups') or [])}"
    segments = info.get("segments") or 1
    resumed = ""
    if segments > 1:
        resumed = ", resumed once" if segments == 2 else f", resumed {segments - 1} times"
    yield "last record", f"step {run.last_step:,}{resumed}"
    if info.get("started"):
        began = datetime.datetime.fromtimestamp(info["started"], tz=datetime.UTC)
        yield "started", f"{began:%d %B %Y, %H:%M} UTC".lstrip("0")
        done = info.get("finished")
        took = max(0.0, done - info["started"]) if done else 0.0  # clocks may be set back
        yield "took", _duration(took) if done else "not finished when read"
    place = " · ".join(str(info[k]) for k in ("device", "dtype") if info.get(k))
    if place:
        yield "on", place
    if "budget" in info:
        budget = info["budget"]
        yield (
            "budget",
            "none, exact schedules" if budget is None else f"{percent(budget)} of the time",
        )
    if info.get("seed") is not None:
        yield "seed", str(info["seed"])


def versions(run: Log) -> str:
    """Versions of what wrote the run, in one line."""
    names = ("eqtoolbox", "torch", "python")
    return " · ".join(f"{name} {run.info[name]}" for name in names if name in run.info)


def _options(groups: list[dict[str, Any]]) -> str:
    """Options of the first parameter group, and how many more there are."""
    if not groups:
        return ""
    names = {"lr": "lr", "momentum": "momentum", "weight_decay": "decay"}
    shown = [f"{names[k]} {number(v)}" for k, v in groups[0].items() if k in names and v]
    more = f", {plural(len(groups), 'group')}" if len(groups) > 1 else ""
    return (", " + ", ".join(shown) if shown else "") + more


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{number(seconds)} s"
