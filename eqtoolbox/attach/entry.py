"""An entry of a configuration: the probe and the schedule that a table [probes.NAME] stands for."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eqtoolbox import probes as ours
from eqtoolbox.attach.fields import checked_option, claims, kinds_of, written
from eqtoolbox.attach.own import NotImported, not_imported, place_of, probe_class
from eqtoolbox.attach.source import named, split
from eqtoolbox.attach.toml import ConfigError
from eqtoolbox.probes.engine import Engine
from eqtoolbox.record.schedule import Schedule, as_schedule, at, every, log_spaced
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.groups.group import Flip
from eqtoolbox.watch.probe import Probe, Scheduled

KINDS: tuple[type[Probe], ...] = tuple(getattr(ours, name) for name in ours.__all__)
WHEN = ("schedule", "light")
PROBES = {probe.name: probe for probe in KINDS}


def entry(
    name: str, table: Mapping[str, Any], source: str, engine: Engine, *, imports: bool = True
) -> Scheduled:
    """The probe of one table.

    Args:
        name: of a probe of ours, or "file.py:NAME" or "package.module:NAME" of one's own.
        table: its options, with a `schedule`, and `light` where it can measure less for less.
        source: the file, for messages and as the place that references are relative to.
        engine: for probes that have one.
        imports: False to run no code that the table names.

    Raises:
        ConfigError: an unknown option, or a value that does not fit; names file, key and remedy.
    """
    given = {key: value for key, value in table.items() if key not in WHEN}
    where = f"{source}: probes.{name}" if name in PROBES else f'{source}: probes."{name}"'
    try:
        if name in PROBES or imports:
            kind = PROBES[name] if name in PROBES else probe_class(name, source, where)
            probe = kind(**_options(kind, given, source, where, engine, imports))
        else:
            probe = not_imported(name, given, where)
        when = schedule_from(table.get("schedule", 1))
        light = schedule_from(table["light"]) if "light" in table else None
        return Scheduled(probe=probe, schedule=when, light=light)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _options(
    kind: type[Probe],
    given: Mapping[str, Any],
    source: str,
    where: str,
    engine: Engine,
    imports: bool,
) -> dict[str, Any]:
    """What the constructor of a probe is called with."""
    kinds = kinds_of(kind)
    options = {key: of for key, of in kinds.items() if written(of)}
    known(given, (*WHEN[: 1 + kind.lightens], *options), f"{where}.")
    chosen: dict[str, Any] = {key: engine for key, of in kinds.items() if of is Engine}
    for key, value in given.items():
        said = f"{where}.{key}"
        chosen[key] = checked_option(value, options[key], said)
        if claims(options[key]):
            chosen[key] = tuple(_claim(e, Path(source).parent, said, imports) for e in value)
    return chosen


def _claim(reference: str, folder: Path, where: str, imports: bool) -> Any:
    """A symmetry by its name, or the object that `module:NAME` stands for."""
    if ":" not in reference:
        return reference
    if not imports:
        return unknown_claim(reference, where)
    claim = named(reference, folder, where)
    if not isinstance(claim, Equivariance):
        raise ConfigError(f"{where}: {reference} must be an Equivariance, got {claim!r}")
    return claim


def unknown_claim(reference: str, said: str) -> Equivariance:
    """What stands for a claim that was not looked up: good for being printed, not for measuring.

    Raises:
        ValueError: `reference` has not the form of one.
    """
    split(reference, said)
    claim = Equivariance(Flip(), trivial, trivial)
    object.__setattr__(claim, "name", f"{reference} (not imported)")
    return claim


def schedule_from(value: Any) -> Schedule:
    """A schedule from a TOML value: an int, or a table with `every`, `at` or `log_spaced`."""
    if not isinstance(value, Mapping):
        return as_schedule(value)
    kinds: dict[str, tuple[Callable[..., Schedule], str]] = {
        "every": (every, "offset"),
        "log_spaced": (log_spaced, "until"),
        "at": (at, ""),
    }
    for name, (make, extra) in kinds.items():
        if name in value and set(value) <= {name, extra}:
            return make(value[name], **({extra: value[extra]} if extra in value else {}))
    raise ValueError(
        "schedule must be an int, {every = n, offset = m}, {at = [steps]} or "
        f"{{log_spaced = n, until = m}}, got {dict(value)}"
    )


def describe(scheduled: Scheduled) -> dict[str, Any]:
    """A probe's schedule and options as JSON values, and where the code of one's own lies."""
    probe = scheduled.probe
    said: dict[str, Any] = {"schedule": repr(scheduled.schedule)}
    if scheduled.light is not None:
        said["light"] = repr(scheduled.light)
    if isinstance(probe, NotImported):
        return {**said, **_plain(probe.options)}
    place = place_of(probe)
    values = {name: getattr(probe, name) for name in kinds_of(type(probe))}
    shown = {n: v for n, v in values.items() if not callable(v) and not isinstance(v, Engine)}
    return {**({"source": place} if place else {}), **said, **_plain(shown)}


def _plain(value: Any) -> Any:
    """A value of an option as JSON has it; objects by their names."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else repr(value)


def known(table: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    """Refuse keys that nobody reads.

    Args:
        table: with the keys.
        allowed: those that are read.
        where: file and table, such as "a.toml: probes.".

    Raises:
        ConfigError: with the nearest that is read.
    """
    source, _, prefix = where.rpartition(": ")
    for key in table:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(
                f"{source}: unknown key {prefix}{key}; expected {', '.join(allowed)}{hint}"
            )
