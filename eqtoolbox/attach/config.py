"""Configuration: probe presets and TOML files, checked against the probes' own fields.

A file holds one table per probe; `schedule` says when, the rest are the probe's options:

    [probes.curvature]
    schedule = 50            # every 50th step; or {every = 50, offset = 10}, {at = [0, 100]},
    light = 10               # {log_spaced = 100, until = 10000}; between them the sharpness alone
    k = 5

    [probes.equivariance]    # names of image symmetries, or claims of your own (Equivariance)
    symmetries = ["cyclic4", "package.module:CLAIM", "file_beside_this.py:CLAIM"]

    [probes."mine.py:UpdateNorm"]    # a probe of your own, a class in the file beside this or in
    power = 3                        # "package.module:NAME"; the entries are its fields

    [engine]                 # how Hessian products are made; both are the defaults
    memory = "fast"          # or "low"
    precision = "full"       # or "as_trained": with the autocasts around the loss and inside it
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eqtoolbox.attach.entry import PROBES, entry, known
from eqtoolbox.attach.toml import ConfigError, tables
from eqtoolbox.expect.words import shown
from eqtoolbox.moved import names
from eqtoolbox.probes.engine import Engine
from eqtoolbox.record.schedule import as_schedule, every
from eqtoolbox.watch.options import Probes
from eqtoolbox.watch.probe import Probe, Scheduled

__getattr__ = names(
    __name__,
    {
        **dict.fromkeys(("KINDS", "describe", "schedule_from"), "eqtoolbox.attach.entry"),
        "When": "eqtoolbox.watch.options",
    },
)
ELSEWHERE = ("audit", "symmetries")  # tables that other commands read
OWN_PROBE = '"file.py:NAME" of your own'
KNOWN = (*PROBES, OWN_PROBE)
PRESETS = ("light", "standard", "full")


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
        imports: False to check claims and probes that a file names as `module:NAME` for their form
            only: no code is run, and the probes are good for being described.

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
    return [overridden(s, schedule, names) for s in scheduled]


def load(path: Path, *, imports: bool = True) -> list[Scheduled]:
    """Probes of a TOML file; without `imports` no code that it names is run.

    Raises:
        ConfigError: the file is missing, malformed, or holds an unknown key.
    """
    data = tables(path)
    known(data, ("probes", "engine", "description", *ELSEWHERE), f"{path}: ")
    return from_tables(data.get("probes", {}), str(path), data.get("engine", {}), imports=imports)


def from_tables(
    given: Mapping[str, Any], source: str, engine: Any = None, *, imports: bool = True
) -> list[Scheduled]:
    """Probes from tables of options by probe name, with the options of one engine."""
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{source}: expected tables [probes.NAME] of {', '.join(PROBES)}")
    if not isinstance(engine or {}, Mapping):
        raise ConfigError(f"{source}: expected a table [engine], got engine = {engine!r}")
    known({n: t for n, t in given.items() if ":" not in str(n)}, KNOWN, f"{source}: probes.")
    known(engine or {}, ("memory", "precision", "way"), f"{source}: engine.")
    try:
        hessians = Engine(**(engine or {}))
    except ValueError as error:
        raise ConfigError(f"{source}: engine: {error}") from error
    for name, table in given.items():
        if not isinstance(table, Mapping):
            raise ConfigError(f"{source}: probes.{name} must be a table, got {table!r}")
    return [entry(n, table, source, hessians, imports=imports) for n, table in given.items()]


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


def overridden(scheduled: Scheduled, schedule: Any, names: list[str]) -> Scheduled:
    """A probe with the schedule that `schedule` says of it, among probes of these names."""
    if isinstance(schedule, Mapping):
        known(schedule, names, "schedule=: ")
        schedule = schedule.get(scheduled.probe.name)
    if schedule is None:
        return scheduled
    return Scheduled(probe=scheduled.probe, schedule=as_schedule(schedule))
