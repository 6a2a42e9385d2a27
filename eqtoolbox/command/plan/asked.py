"""What a plan is asked for: a table [plan] of a TOML file, flags of the command line, or both."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from eqtoolbox.attach.toml import ConfigError, tables
from eqtoolbox.command.plan.network import Network
from eqtoolbox.command.plan.setting import Training
from eqtoolbox.expect.bounds import Bound
from eqtoolbox.expect.fit import Unexpected, fitted
from eqtoolbox.expect.kinds import Count

OPTIONS = tuple(f.name for f in fields(Training) if f.name != "network")
SIZES = ("parameters", "samples", "tokens")  # of a usual transformer
KEYS = ("model", *SIZES, *OPTIONS)
Parameters = Annotated[
    float, Bound("a number of at least 1, such as 7e9", lambda x: 1 <= x < 1e16, whole=True)
]


def asked(config: Path | None, flags: Mapping[str, Any]) -> Training:
    """The training that a file and flags describe; flags come first.

    Args:
        config: a TOML file with a table [plan], or None.
        flags: by the names of the table's keys; None where a flag was not given.

    Raises:
        ValueError: file, table or key missing, unknown or out of range; says the remedy.

    Example:
        >>> training = asked(None, {"parameters": 7e9, "ranks": 8, "sharding": "fsdp2"})
        >>> round(training.held / 2**30, 1)
        13.0
    """
    given = {} if config is None else table(config)
    given |= {key: value for key, value in flags.items() if value is not None}
    where = "" if config is None else f"{config}: plan."
    try:
        return Training(
            network=_network(given, config, where),
            **{key: given[key] for key in OPTIONS if key in given},
        )
    except Unexpected as error:
        raise ValueError(f"{where}{error}") from error


def table(config: Path) -> dict[str, Any]:
    """The table [plan]; no code that it names is run.

    Raises:
        ConfigError: the file or the table is none, or has an unknown key.
    """
    found = tables(config).get("plan")
    if not isinstance(found, dict):
        raise ConfigError(f"{config}: expected a table [plan] with parameters = 7e9, or model")
    for key in found.keys() - {*KEYS}:
        near = difflib.get_close_matches(key, KEYS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KEYS)}"
        raise ConfigError(f"{config}: [plan] has no key {key!r}; {hint}")
    return dict(found)


def _network(given: Mapping[str, Any], config: Path | None, where: str) -> Network:
    if ("model" in given) == ("parameters" in given):
        raise ValueError(
            f"{where}expected either parameters, such as 7e9, or a model, got "
            f"{'both' if 'model' in given else 'neither'}; give one of them"
        )
    if "parameters" in given:
        number = fitted("parameters", given["parameters"], Parameters)
        sizes = {key: fitted(key, given[key], Count) for key in SIZES[1:] if key in given}
        return Network.usual(float(number), **sizes)
    if odd := [key for key in SIZES[1:] if key in given]:
        raise ValueError(
            f"{where}{odd[0]} is of a plan by parameters; a model brings a batch of its own"
        )
    from eqtoolbox.command.model import load

    text = fitted("model", given["model"], str)
    model, batch, loss, _ = load(text, Path() if config is None else config.parent)
    return Network.of(model, batch, loss)
