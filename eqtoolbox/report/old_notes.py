"""Old notes: the facts of runs of format 1, which had them in prose only; goes with 0.1 runs."""

import functools
import re
from collections.abc import Callable
from typing import Any

from eqtoolbox.record.facts import Facts
from eqtoolbox.record.record import FIELDS

_NAME, _STATUS, _NOTE, _FACTS = map(FIELDS.index, ("name", "status", "note", "facts"))
_BLAME = ("first broken at", "wrong output action", "no single layer", "it holds with")
_METRIC = "; in the metric of "

Reading = Callable[[str], dict[str, Any]]


def understood(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The fields of a row, with the facts that its note tells; see `facts_in`."""
    if not values[_NOTE] or values[_FACTS]:
        return values
    if values[_STATUS] == "ok" and _reading(values[_NAME]) is None:
        return values
    told = facts_in(values[_NAME], values[_STATUS], values[_NOTE])
    return (*values[:_FACTS], Facts(told), *values[_FACTS + 1 :]) if told else values


def facts_in(name: str, status: str, note: str) -> dict[str, Any]:
    """The facts that a row of format 1 tells in its note.

    Example:
        >>> facts_in("curvature/stability", "ok", "sharpness * 0.0263")
        {'factor': 0.0263}
    """
    told: dict[str, Any] = {} if status == "ok" else {"why": note}
    if status == "not_applicable" and "monitor.loss" in note:
        told["remedy"] = "monitor.loss"
    read = _reading(name)
    return told | (read(note) if read is not None else {})


@functools.lru_cache(1024)
def _reading(name: str) -> Reading | None:
    """How the notes of this name are read; None where they hold no facts."""
    probe, quantity, target = [*name.split("/", 2), "", ""][:3]
    if quantity == "self_test":
        return _self_test
    if (probe, quantity) == ("noether", "dimension"):
        moves = target == "homogeneity" or target.startswith("head_")
        return (lambda _: {"equivariant": True}) if moves else None
    return _READINGS.get(f"{probe}/{quantity}" + ("/" if target else ""))


def _self_test(note: str) -> dict[str, Any]:
    mode, _, reason = note.partition(": ")
    return {"mode": mode, "reason": reason}


def _blame(note: str) -> dict[str, Any]:
    starts = [note.find(words) for words in _BLAME if words in note]
    return {"blame": note[min(starts) :]} if starts else {}


def _growth(note: str) -> dict[str, Any]:
    if not note.startswith("alarm"):
        return {}
    shares = re.search(r"; (\d{1,3})% of moved samples keep their class, (\d{1,3})% did", note)
    return {"lost": True} | (
        {"keep": int(shares[1]) / 100, "kept": int(shares[2]) / 100} if shares else {}
    )


def _forecast(note: str) -> dict[str, Any]:
    told: dict[str, Any] = {"approximate": True} if "approximate" in note else {}
    said = re.match(r"measured (\d+(?:\.\d+)?(?:e[+-]?\d{1,2})?) since step (\d{1,15})\b", note)
    return told | ({"measured": float(said[1]), "since": int(said[2])} if said else {})


def _stability(note: str) -> dict[str, Any]:
    said = re.fullmatch(r"sharpness \* (\d+(?:\.\d+)?(?:e[+-]?\d{1,2})?)", note)
    if said:
        return {"factor": float(said[1])}
    _, _, optimizer = note.partition("Hessian in the metric of ")
    return {"metric": optimizer} if optimizer else {}


def _untrained(note: str) -> dict[str, Any]:
    named = re.sub(r" and \d+ more$", "", note)
    return {"parameters": named.split(", ")}


def _skipped(note: str) -> dict[str, Any]:
    said = re.fullmatch(r"the gradient of (.*) was not finite", note)
    return {"culprit": said[1]} if said else {"why": note}


def _several(note: str) -> dict[str, Any]:
    named = note.split("; ")
    return {"units": named[:-1] if re.fullmatch(r"\d+ more", named[-1]) else named}


def _dead_share(note: str) -> dict[str, Any]:
    said = re.fullmatch(
        r"(\d{1,9}) of (\d{1,9}) units on (?:(\d{1,9}) batches in a row|the only batch measured), "
        r"(\d{1,12}) samples",
        note,
    )
    if not said:
        return {}
    dead, units, batches, samples = (int(n or 1) for n in said.groups())
    return {"dead": dead, "units": units, "batches": batches, "samples": samples}


def _normal(note: str) -> dict[str, Any]:
    _, _, metric = note.partition(_METRIC)
    return {"metric": metric.partition(";")[0]} if metric else {}


def _members(note: str) -> dict[str, Any]:
    names, sizes = [], []
    for part in filter(None, note.split("; ")):
        name, _, count = part.rpartition(": ")
        if not re.fullmatch(r"\d{1,12}", count, re.ASCII):
            break
        names.append(name)
        sizes.append(int(count))
    return {"members": names, "sizes": sizes}


_READINGS: dict[str, Reading] = {
    "equivariance/unmeasured/": lambda note: {"why": note},
    "equivariance/relative_error/": _blame,
    "equivariance/growth/": _growth,
    "conservation/worst_drift/": lambda note: {"which": note},
    "conservation/first_order/": lambda note: {"epsilon": True} if "epsilon" in note else {},
    "conservation/forecast/": _forecast,
    "conservation/unit_drift/": _members,
    "conservation/charge/": _members,
    "curvature/stability": _stability,
    "monitor/parameters_untrained": _untrained,
    "monitor/closure_grad_ratio": lambda note: {"cause": note},
    "monitor/steps_unseen": lambda note: {"why": note},
    "training/skipped_steps": _skipped,
    "discrete/duplicates": _several,
    "discrete/dead": _several,
    "discrete/dead_share/": _dead_share,
    "discrete/nearest/": lambda note: {"which": note, "pair": " and " in note},
    "discrete/normal_curvature/": _normal,
    "discovery/dimension": lambda note: {"algebra": note},
}
