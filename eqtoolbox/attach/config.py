"""Configuration: probe presets and TOML files, checked against the probes' own fields.

A file holds one table per probe; `schedule` says when, the rest are the probe's options:

    [probes.curvature]
    schedule = 50            # every 50th step; or {every = 50, offset = 10}, {at = [0, 100]},
    k = 5                    # {log_spaced = 100, until = 10000}

    [probes.equivariance]    # names of image symmetries, or claims of your own (Equivariance)
    symmetries = ["cyclic4", "package.module:CLAIM", "file_beside_this.py:CLAIM"]

    [engine]                 # how Hessian products are made; both are the defaults
    memory = "fast"          # or "low"
    precision = "full"       # or "as_trained": with the autocasts around the loss and inside it
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from eqtoolbox.attach.source import named, split
from eqtoolbox.attach.toml import tables
from eqtoolbox.expect.bounds import OWN
from eqtoolbox.expect.words import shown
from eqtoolbox.probes.asymmetry import Asymmetry
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.discrete import Discrete
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.equivariance import EquivarianceError
from eqtoolbox.probes.learned import LearnedAlgebra
from eqtoolbox.probes.noether import Noether
from eqtoolbox.probes.spectrum import Spectrum
from eqtoolbox.probes.tracking import Tracking
from eqtoolbox.record.schedule import Schedule, as_schedule, at, every, log_spaced
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.groups.group import Flip
from eqtoolbox.watch.probe import Probe, Scheduled

KINDS: tuple[type[Probe], ...] = (
    EquivarianceError,
    Asymmetry,
    LearnedAlgebra,
    Conservation,
    Noether,
    Discrete,
    Curvature,
    Tracking,
    Spectrum,
)
PROBES = {probe.name: probe for probe in KINDS}
CLAIMING = (EquivarianceError, Asymmetry)  # their symmetries are names, or Equivariance objects
NO_OPTIONS = ("engine", "stability_scale")  # fields of objects, which no file can write
ELSEWHERE = ("audit", "symmetries")  # tables that other commands read
PRESETS = ("light", "standard", "full")
Probes = Annotated[str | Path | Sequence[Probe | Scheduled] | Mapping[str, Any], OWN]
When = Annotated[int | Schedule | Mapping[str, int | Schedule] | None, OWN]


class ConfigError(ValueError):
    """A configuration cannot be read; the message names file, key and remedy."""


def preset_path(name: str) -> Path:
    """Where the preset of this name lies: inside the wheel, or beside a source checkout."""
    here = Path(__file__).parents[1]
    for folder in (here / "configs", here.parent / "configs"):
        if (folder / f"{name}.toml").exists():
            return folder / f"{name}.toml"
    raise FileNotFoundError(f"the preset {name!r} is missing from this installation")


def resolve(probes: Probes, schedule: Any = None, *, imports: bool = True) -> list[Scheduled]:
    """Probes with their schedules, from whatever `attach(probes=...)` accepts.

    Args:
        probes: a preset's name, a TOML file, probes, scheduled probes, or what such a file holds.
        schedule: overrides every probe's own; an int, a callable, or a dict by probe name.
        imports: False to check claims that a file names as `module:NAME` for their form only: no
            code is run, and the probes are good for being described.

    Raises:
        ConfigError: unknown key, wrong type or value; names file, key and nearest match.
        TypeError: `probes` is none of these.
    """
    if isinstance(probes, (str, Path)):
        scheduled = load(_path_of(probes), imports=imports)
    elif isinstance(probes, Mapping):
        scheduled = from_tables(probes, "probes=", imports=imports)
    else:
        scheduled = [_with_schedule(p) for p in _several(probes)]
    names = [s.probe.name for s in scheduled]
    if len(set(names)) < len(names):
        raise ConfigError(f"each probe can be given once, got {names}")
    return [Scheduled(probe=s.probe, schedule=_override(s, schedule, names)) for s in scheduled]


def load(path: Path, *, imports: bool = True) -> list[Scheduled]:
    """Probes of a TOML file; without `imports` no code that it names is run.

    Raises:
        ConfigError: the file is missing, malformed, or holds an unknown key.
    """
    try:
        data = tables(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _known(data, ("probes", "engine", "description", *ELSEWHERE), str(path), "")
    return from_tables(data.get("probes", {}), str(path), data.get("engine", {}), imports=imports)


def from_tables(
    given: Mapping[str, Any], source: str, engine: Any = None, *, imports: bool = True
) -> list[Scheduled]:
    """Probes from tables of options by probe name, with the options of one engine."""
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{source}: expected tables [probes.NAME] of {', '.join(PROBES)}")
    if not isinstance(engine or {}, Mapping):
        raise ConfigError(f"{source}: expected a table [engine], got engine = {engine!r}")
    _known(given, tuple(PROBES), source, "probes.")
    _known(engine or {}, ("memory", "precision"), source, "engine.")
    try:
        hessians = Engine(**(engine or {}))
    except ValueError as error:
        raise ConfigError(f"{source}: engine: {error}") from error
    scheduled = []
    for name, table in given.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{source}: probes.{name} must be a table, got {table!r}")
        kind = PROBES[name]
        options = {f.name: f.type for f in fields(kind) if f.name not in NO_OPTIONS}  # type: ignore[arg-type]
        if kind in CLAIMING:
            options["symmetries"] = tuple[str, ...]
        _known(table, ("schedule", *options), source, f"probes.{name}.")
        for key, value in table.items():
            if key != "schedule":
                _check_type(value, options[key], f"{source}: probes.{name}.{key}")
        chosen: dict[str, Any] = {k: v for k, v in table.items() if k != "schedule"}
        own = {f.name for f in fields(kind)}  # type: ignore[arg-type]
        chosen |= {"engine": hessians} if "engine" in own else {}
        where = f"{source}: probes.{name}"
        if kind in CLAIMING and "symmetries" in chosen:
            named_here = chosen["symmetries"]
            chosen["symmetries"] = [_claim(e, source, name, imports) for e in named_here]
        try:
            probe = kind(**chosen)
            when = schedule_from(table.get("schedule", 1))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {error}") from error
        scheduled.append(Scheduled(probe=probe, schedule=when))
    return scheduled


def _claim(entry: str, source: str, probe: str, imports: bool) -> Any:
    """A symmetry by its name, or the object that `module:NAME` stands for."""
    if ":" not in entry:
        return entry
    where = f"{source}: probes.{probe}.symmetries"
    try:
        if not imports:
            return not_imported(entry, where)
        claim = named(entry, Path(source).parent, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(claim, Equivariance):
        raise ConfigError(f"{where}: {entry} must be an Equivariance, got {claim!r}")
    return claim


def not_imported(reference: str, said: str) -> Equivariance:
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
    """A probe's schedule and options as JSON values."""
    probe = scheduled.probe
    described: dict[str, Any] = {"schedule": repr(scheduled.schedule)}
    names: list[str] = [f.name for f in fields(probe)] if is_dataclass(probe) else []
    for name in names:
        value = getattr(probe, name)
        if name in NO_OPTIONS:
            continue
        if isinstance(value, tuple):
            value = [v if isinstance(v, str) else getattr(v, "name", repr(v)) for v in value]
        described[name] = value
    return described


def _path_of(probes: str | Path) -> Path:
    if str(probes) in PRESETS:
        return preset_path(str(probes))
    if Path(probes).suffix != ".toml":
        near = difflib.get_close_matches(str(probes), PRESETS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"expected one of {PRESETS} or a .toml file, got {str(probes)!r}{hint}")
    return Path(probes)


def _several(probes: Any) -> Sequence[Any]:
    hint = ""
    if isinstance(probes, Probe | Scheduled | type):
        hint = "; one alone is written [probe]"
    if hint or not isinstance(probes, Iterable):
        raise TypeError(
            f"probes must be one of {PRESETS}, a TOML file, a list of probes or their options by "
            f"name, got {shown(probes)}{hint}"
        )
    given = list(probes)
    if not given:
        raise ConfigError("expected at least one probe in probes=, got an empty list")
    return given


def _with_schedule(probe: Any) -> Scheduled:
    if isinstance(probe, Scheduled):
        return probe
    if isinstance(probe, Probe):
        return Scheduled(probe=probe, schedule=every(1))
    hint = "; did you forget ()?" if isinstance(probe, type) else ""
    raise TypeError(f"expected a Probe or Scheduled in probes, got {shown(probe)}{hint}")


def _override(scheduled: Scheduled, schedule: Any, names: list[str]) -> Schedule:
    if isinstance(schedule, Mapping):
        _known(schedule, names, "schedule=", "")
        schedule = schedule.get(scheduled.probe.name)
    return scheduled.schedule if schedule is None else as_schedule(schedule)


def _known(table: Mapping[str, Any], allowed: Sequence[str], source: str, prefix: str) -> None:
    for key in table:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, 1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(
                f"{source}: unknown key {prefix}{key}; expected {', '.join(allowed)}{hint}"
            )


def _check_type(value: Any, kind: Any, where: str) -> None:
    """Refuse a value that does not fit the field's annotation; ints pass for floats."""
    if get_origin(kind) is Annotated:  # its bounds are looked at by the constructor
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not isinstance(value, list) or not all(isinstance(v, item) for v in value):
            raise ConfigError(f"{where}: expected a list of {item.__name__}, got {value!r}")
        return
    choices = get_args(kind)
    if choices and all(isinstance(c, str) for c in choices):
        if value not in choices:
            raise ConfigError(f"{where}: expected one of {choices}, got {value!r}")
        return
    accepted = (int, float) if kind is float else kind
    wrong_bool = isinstance(value, bool) and kind is not bool
    if wrong_bool or not isinstance(value, accepted):
        raise ConfigError(f"{where}: expected {kind.__name__}, got {value!r}")
