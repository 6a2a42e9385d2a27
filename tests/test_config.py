"""Configurations are read strictly: every mistake names file, key and remedy."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqtoolbox.attach import config
from eqtoolbox.attach.config import PRESETS, load, preset_path, resolve
from eqtoolbox.attach.entry import describe
from eqtoolbox.attach.toml import ConfigError
from eqtoolbox.command.demo.catalogue import DEMOS
from eqtoolbox.probes.conservation import Conservation
from eqtoolbox.probes.curvature import Curvature
from eqtoolbox.probes.engine import Engine
from eqtoolbox.probes.noether import Noether
from eqtoolbox.record.schedule import at, every, log_spaced


def written(folder: Path, text: str) -> Path:
    path = folder / "probes.toml"
    path.write_text(text)
    return path


EXPERIMENTS = [f"experiments/{name}" for name in DEMOS]


@pytest.mark.parametrize("name", [*PRESETS, *EXPERIMENTS])
def test_every_shipped_file_resolves(name: str) -> None:
    assert load(preset_path(name))


CLAIM = """
from eqtoolbox.symmetry import Equivariance, Sign
from eqtoolbox.symmetry.actions.scaling import Parity
ODD = Equivariance(Sign(), Parity(), Parity(), name="odd")
"""


def test_a_claim_of_ones_own_is_named_by_module_or_by_a_file_beside_the_configuration(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(CLAIM)
    names = '["flip", "mine.py:ODD", "eqtoolbox.demos.robot:MIRROR"]'
    path = written(tmp_path, f"[probes.equivariance]\nsymmetries = {names}\n")
    (equivariance,) = resolve(path)
    assert describe(equivariance)["symmetries"] == ["flip", "odd", "mirror"]


def test_values_reach_the_probe_and_parameter_probes_have_one_engine(
    tmp_path: Path,
) -> None:
    path = written(
        tmp_path,
        "[probes.curvature]\nk = 7\nschedule = {every = 5, offset = 2}\n"
        "[probes.noether]\nschedule = {at = [1, 4]}\n"
        "[probes.conservation]\nschedule = {log_spaced = 10, until = 100}\n",
    )
    curvature, noether, conservation = resolve(path)
    assert isinstance(curvature.probe, Curvature)
    assert curvature.probe.k == 7
    assert curvature.schedule == every(5, offset=2)
    assert noether.schedule == at([1, 4])
    assert conservation.schedule == log_spaced(10, until=100)
    assert isinstance(noether.probe, Noether)
    assert isinstance(conservation.probe, Conservation)
    assert noether.probe.engine == curvature.probe.engine == Engine()
    assert describe(curvature)["k"] == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[probes.curvature]\nkk = 3",
            r"unknown key probes\.curvature\.kk.*mean probes\.curv.*\.k",
        ),
        (
            "[probes.curvatur]\nk = 3",
            r"unknown key probes\.curvatur;.*did you mean probes\.curvatu",
        ),
        ("[prober]\nk = 3", "unknown key prober.*did you mean probes"),
        ("[probes.curvature]\nk = 'a'", r"probes\.curvature\.k: expected int, got 'a'"),
        ("[probes.curvature]\nk = true", "expected int, got True"),
        ("[probes.curvature]\nk = 0", r"probes\.curvature: curvature needs k >= 1"),
        ("[probes.curvature]\nschedule = -1", "needs n >= 0"),
        ("[probes.curvature]\nschedule = {often = 1}", "schedule must be an int"),
        ("[probes.equivariance]\nsymmetries = ['cyclic5']", "expected symmetries among"),
        ("[probes.equivariance]\nsymmetries = 'flip'", "expected a list of str"),
        ("[probes.equivariance]\nsymmetries = ['a.py:B']", "no file .*a.py; paths are relative to"),
        ("[probes.equivariance]\nsymmetries = ['nowhere:B']", "No module named 'nowhere'"),
        ("[probes.equivariance]\nsymmetries = ['math:B']", "math has no 'B'"),
        ("[probes.equivariance]\nsymmetries = ['math:pi']", "must be an Equivariance, got 3.14"),
        ("[probes.equivariance]\noutput = 'sideways'", "expected one of"),
        ("[engine]\nmemory = 'tiny'\n[probes.curvature]", r"engine: memory must be one of"),
        ("[engine]\nmemry = 'low'\n[probes.curvature]", r"engine\.memry.*did you mean engine\.m"),
        ("[probes", "not valid TOML"),
        ("", r"expected tables \[probes.NAME\]"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_an_unknown_preset_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="did you mean 'standard'"):
        resolve("standart")
    with pytest.raises(ConfigError, match="given once"):
        resolve([Curvature(), Curvature()])
    with pytest.raises(TypeError, match="expected a Probe or Scheduled"):
        resolve([3])  # type: ignore[list-item]


def test_light_steps_are_given_beside_the_whole_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[probes.curvature]\nschedule = 4\nlight = 2\n[probes.conservation]\n")
    curvature, conservation = resolve(file)
    assert curvature.light is not None and [n for n in range(5) if curvature.light(n)] == [0, 2, 4]
    assert conservation.light is None
    assert describe(curvature)["light"] == "every(n=2, offset=0)" and "light" not in describe(
        conservation
    )
    (overridden, _) = resolve(file, 3)
    assert overridden.light is None, "schedule= says when, and all of it"
    file.write_text("[probes.conservation]\nlight = 2\n")
    with pytest.raises(ConfigError, match=r"probes\.conservation: conservation has no light"):
        resolve(file)


def test_a_schedule_overrides_all_or_one() -> None:
    assert {s.schedule for s in resolve("standard", 7)} == {every(7)}
    some = {s.probe.name: s.schedule for s in resolve("standard", {"curvature": 3})}
    assert some["curvature"] == every(3)
    assert some["noether"] == every(25)
    with pytest.raises(ConfigError, match="unknown key curvatur"):
        resolve("standard", {"curvatur": 3})


@pytest.mark.parametrize("name", ["KINDS", "describe", "schedule_from", "When"])
def test_names_that_left_the_configuration_lead_to_where_they_are(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"attach.config.{name} is now eqtoolbox"):
        assert getattr(config, name)


@given(st.text(max_size=80))
def test_no_text_crashes_the_reader(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.toml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            resolve(path)
        except ConfigError as error:
            assert str(path) in str(error)
