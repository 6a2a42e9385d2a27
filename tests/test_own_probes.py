"""Probes of one's own in a configuration: named like claims, checked like ours, run like ours."""

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eqtoolbox as eq
from eqtoolbox.attach.config import resolve
from eqtoolbox.attach.entry import PROBES, describe
from eqtoolbox.attach.fields import checked_option
from eqtoolbox.attach.toml import ConfigError
from eqtoolbox.command.cli import main
from eqtoolbox.probes.engine import Engine
from eqtoolbox.sinks.memory import MemorySink

MINE = """
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import eqtoolbox as eq
from eqtoolbox.probes.claims import Claim
from eqtoolbox.probes.engine import Engine
from eqtoolbox.symmetry import Equivariance, Sign
from eqtoolbox.symmetry.actions.scaling import Parity

Path(__file__).with_suffix(".ran").touch()
ODD = Equivariance(Sign(), Parity(), Parity(), name="odd")
NUMBER = 3


@dataclass(frozen=True, kw_only=True)
class UpdateNorm(eq.Probe):
    name: ClassVar[str] = "update"
    headline: ClassVar[str] = "norm"
    mode: ClassVar[str] = "train"

    power: float = 2.0
    weights: tuple[float, ...] = ()
    cut: int | None = None
    kind: Literal["all", "some"] = "all"
    by_layer: dict[str, float] = field(default_factory=dict, hash=False)
    symmetries: tuple[Claim, ...] = ()
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self):
        if self.power <= 0:
            raise ValueError(f"power must be > 0, got {self.power}")

    def measure(self, snapshot, reference, rng):
        sizes = [u.abs().pow(self.power).sum() for u in snapshot.update.values()]
        yield eq.Measurement("norm", sum(sizes) ** (1 / self.power))


class Bare(eq.Probe):
    name, headline, mode = "bare", "one", "eval"

    def measure(self, snapshot, reference, rng):
        yield eq.Measurement("one", 1.0)


class Nameless(eq.Probe):
    headline, mode = "one", "eval"

    def measure(self, snapshot, reference, rng):
        yield eq.Measurement("one", 1.0)


class Modeless(Nameless):
    name, mode = "modeless", "sideways"


class Unwritten(eq.Probe):
    name, headline, mode = "unwritten", "one", "eval"


@dataclass
class Stranger:
    power: float = 2.0


MADE = Bare()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the code of a user, who works elsewhere."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.py").write_text(MINE)
    (tmp_path / "there" / "own_module.py").write_text(MINE)
    (tmp_path / "there" / "later.py").write_text("from __future__ import annotations\n" + MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    return tmp_path / "there"


def written(folder: Path, text: str) -> Path:
    path = folder / "probes.toml"
    path.write_text(text)
    return path


def train(config: Any, steps: int = 3) -> list[eq.Record]:
    torch.manual_seed(0)
    model, memory = nn.Linear(3, 2), MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(model, optimizer, probes=config, budget=None, sinks=(memory,)):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()
    return memory.records


@pytest.mark.parametrize("where", ["mine.py", "own_module", "later.py"])
def test_a_probe_of_ones_own_is_named_by_file_or_module_and_measures(
    folder: Path, where: str
) -> None:
    path = written(
        folder,
        f'[probes."{where}:UpdateNorm"]\nschedule = 2\npower = 1\nweights = [0.5, 1.5]\ncut = 4\n'
        f'kind = "some"\nsymmetries = ["flip", "{where}:ODD"]\nby_layer = {{weight = 1.0}}\n'
        '[probes.curvature]\nk = 1\n[engine]\nmemory = "low"\n',
    )
    own, curvature = resolve(path)
    assert own.probe.weights == (0.5, 1.5)  # type: ignore[attr-defined]
    assert own.probe.engine == curvature.probe.engine == Engine(memory="low")  # type: ignore[attr-defined]
    assert hash(own.probe) == hash(own.probe)
    said = describe(own)
    assert said.pop("source").endswith(f"{where.removesuffix('.py')}.py:UpdateNorm")
    assert said == {
        "schedule": "every(n=2, offset=0)", "power": 1, "weights": [0.5, 1.5], "cut": 4,
        "kind": "some", "by_layer": {"weight": 1.0}, "symmetries": ["flip", "odd"],
    }  # fmt: skip
    rows = [r for r in train(path) if r.name == "update/norm"]
    assert [r.step for r in rows] == [0, 2]
    assert all(r.status == "ok" and r.value > 0 for r in rows)


def test_a_probe_without_fields_takes_a_schedule_only(folder: Path) -> None:
    path = written(folder, '[probes."mine.py:Bare"]\nschedule = {at = [1]}\n')
    assert [r.step for r in train(path) if r.name == "bare/one"] == [1]
    (scheduled,) = resolve({"there/mine.py:Bare": {}})  # relative to where the program runs
    assert scheduled.probe.name == "bare"


def test_check_shows_a_probe_of_ones_own_and_runs_nothing_if_told_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(folder, '[probes."mine.py:UpdateNorm"]\nschedule = 2\npower = 3\n')
    head = "mine.py:UpdateNorm (not imported)"
    assert main(["check", str(path), "--no-import", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        head: {"schedule": "every(n=2, offset=0)", "power": 3}
    }
    assert main(["check", str(path), "--no-import"]) == 0
    assert f"[{head}]\n  schedule = every(n=2, offset=0)\n  power = 3" in capsys.readouterr().out
    assert not list(folder.glob("*.ran"))
    assert main(["check", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "[update]\n  source = " in shown and "  power = 3\n" in shown and "cut = None" in shown
    assert list(folder.glob("*.ran"))


OWN = '[probes."mine.py:UpdateNorm"]\n'
MISTAKES = [
    ('[probes."nowhere.py:A"]', r'probes."nowhere.py:A": no file .*nowhere\.py; paths are relat'),
    ('[probes."no_such_module:A"]', "no_such_module cannot be imported"),
    ('[probes."mine.py:UpdateNom"]', r"mine\.py has no 'UpdateNom'; did you mean 'UpdateNorm'\?"),
    ('[probes."mine.py:"]', "expected 'package.module:NAME' or 'file.py:NAME', got 'mine.py:'"),
    ('[probes."mine.py"]', r"unknown key probes\.mine\.py; .* \"file.py:NAME\" of your own"),
    ('[probes."mine.py:NUMBER"]', "expected a subclass of Probe, got 3; write class NAME"),
    ('[probes."mine.py:Stranger"]', "expected a subclass of Probe, got the class Stranger; write"),
    ('[probes."mine.py:MADE"]', "expected a subclass of Probe, got .*; name its class, and its op"),
    ('[probes."mine.py:Unwritten"]', "expected a probe with a method measure, got one without"),
    ('[probes."mine.py:Nameless"]', r"expected name: ClassVar\[str\] = .* in the class, got None"),
    ('[probes."mine.py:Modeless"]', r"expected mode: .* one of \('train', 'eval'.*got 'sideways'"),
    ('[probes."mine.py:Bare"]\npower = 2', r'key probes."mine.py:Bare"\.power; expected schedule$'),
    (OWN + "pwer = 2", r'unknown key probes."mine.py:UpdateNorm".pwer; expected sch.*mean .*power'),
    (OWN + "engine = 2", r"unknown key .*\.engine; expected schedule, power"),
    (OWN + "power = 'a'", r"UpdateNorm\"\.power: expected float, got 'a'"),
    (OWN + "power = true", "power: expected float, got True"),
    (OWN + "power = -1", r'probes."mine.py:UpdateNorm": power must be > 0, got -1'),
    (OWN + "weights = [1, 'a']", r"weights: expected a list of float, got \[1, 'a'\]"),
    (OWN + "weights = [true]", r"weights: expected a list of float, got \[True\]"),
    (OWN + "power = nan", "power must be a number, got nan"),
    (OWN + "cut = 2.5", r"cut must be an integer or None, got 2\.5"),
    (OWN + "kind = 'non'", r"kind: expected one of \('all', 'some'\), got 'non'"),
    (OWN + "by_layer = 3", "by_layer must be a dict of numbers, got 3"),
    (OWN + "symmetries = ['mine.py:NUMBER']", "NUMBER must be an Equivariance, got 3"),
    (OWN + "schedule = -1", r'UpdateNorm": .*n >= 0'),
    ('probes = {"mine.py:UpdateNorm" = 3}', r"probes\.mine\.py:UpdateNorm must be a table, got 3"),
    (OWN + '[probes."own_module:UpdateNorm"]', "each probe can be given once"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_in_a_probe_of_ones_own_is_named(
    folder: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(folder, text)
    with pytest.raises(ConfigError, match=message):
        resolve(path)
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr().err
    assert re.search(message.removesuffix("$"), said)
    assert str(path) in said or "given once" in said


def test_ours_are_found_in_one_table() -> None:
    assert {kind.__name__ for kind in PROBES.values()} == set(eq.probes.__all__)
    assert all(kind.name == name for name, kind in PROBES.items())


TOPIC = """
import eqtoolbox as eq
from eqtoolbox.report import Finding, Topic
from eqtoolbox.report.finding import Evidence


def long(run):
    _, values = run.series("update/norm")
    text = f"The last step is {values[-1]:.3g} long."
    evidence = Evidence(name="update/norm", step=run.last_step, value=values[-1])
    yield Finding(level="note", text=text, evidence=(evidence,))


class UpdateNorm(eq.Probe):
    name, headline, mode = "update", "norm", "train"
    topic = Topic(
        question="How long are the steps?", slug="steps", explanation="Lengths.", rules=(long,)
    )

    def measure(self, snapshot, reference, rng):
        yield eq.Measurement("norm", 2.0)
"""


def test_the_topic_of_an_own_probe_is_asked_where_its_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(TOPIC)
    config = tmp_path / "mine.toml"
    config.write_text('[probes."mine.py:UpdateNorm"]\n')
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with eq.attach(model, optimizer, probes=config, run_dir=tmp_path / "run", budget=None) as m:
        loss_fn = m.loss(lambda model, x: model(x).square().mean())
        loss_fn(model, torch.ones(3, 2)).backward()
        optimizer.step()
    assert main(["summary", str(tmp_path / "run"), "--probes", str(config)]) == 0
    assert "The last step is 2 long." in capsys.readouterr().out
    assert main(["summary", str(tmp_path / "run")]) == 0
    assert "long." not in capsys.readouterr().out, "a run directory names no code"


@pytest.mark.parametrize(
    ("kind", "value", "given"),
    [
        (tuple[float, ...], [1, 2], (1, 2)),
        (tuple[float, ...] | None, [1.5], (1.5,)),
        (float | tuple[float, ...], 2.5, 2.5),
        (tuple[tuple[str, float], ...], [["a", 1.5]], (("a", 1.5),)),
        (tuple[str, float], ["a", 1.5], ("a", 1.5)),
        (tuple, [1, "a"], (1, "a")),
        (list[float], [1.5], [1.5]),
        (dict[str, float], {"a": 1.5}, {"a": 1.5}),
    ],
)
def test_lists_become_tuples_where_a_field_says_so(kind: Any, value: Any, given: Any) -> None:
    found = checked_option(value, kind, "probes.mine.option")
    assert found == given
    assert type(found) is type(given)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(tuple[int, ...], [True, 1]), (float, math.nan), (tuple[str, float], ["a"]), (tuple, "ab")],
)
def test_what_does_not_fit_a_field_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"probes\.mine\.option"):
        checked_option(value, kind, "probes.mine.option")


def test_a_probe_that_does_not_say_what_it_is_is_refused_as_it_is_attached() -> None:
    class Unsaid(eq.Probe):
        name, headline = "unsaid", "one"

        def measure(self, snapshot: Any, reference: Any, rng: Any) -> Iterator[eq.Measurement]:
            yield eq.Measurement("one", 1.0)

    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"Unsaid is no whole probe: expected mode: .*got None"):
        eq.attach(model, optimizer, probes=[Unsaid()])
