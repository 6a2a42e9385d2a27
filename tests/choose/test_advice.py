"""`eqtoolbox suggest`: table, JSON, page, and what a configuration must not say."""

import json
import re
from pathlib import Path

import pytest

from eqtoolbox.command.cli import main
from eqtoolbox.command.subject import load
from eqtoolbox.demos.robot import MIRROR

SOURCE = """
import torch
from torch import nn

def build():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=rng)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    return net, x, x[:, :1].square() + x[:, 1:]

def without():
    return build()[:2]
"""
AUDIT = '[audit]\nsource = "mine.py:build"\n'
QUICK = '[suggest]\nways = ["averaged"]\nsteps = 100\nrepeats = 1\nfolds = 3\ninfer = false\n'


def config(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(SOURCE)
    path = folder / "mine.toml"
    path.write_text(body)
    return str(path)


def test_table_json_and_page_say_the_same(tmp_path: Path, capsys) -> None:
    path = config(tmp_path, AUDIT + QUICK)
    page = tmp_path / "page.html"
    assert main(["suggest", path, "--json", "--page", str(page)]) == 0
    told = json.loads(capsys.readouterr().out)
    first = told["rows"][0]
    assert first["claim"] == "mirror0.even" and first["way"] == "averaged"
    assert first["gain"] > 0 and first["data_p_value"] > 0.01
    assert {row["outcome"] for row in told["rows"]} >= {"none", "refused", "not tried"}
    html = page.read_text()
    assert "mirror0.even, averaged" in html and "Which symmetries do the data allow?" in html
    assert not re.search(r'(src|href)="https?://', html.partition("<script>")[0])
    assert main(["suggest", path]) == 0
    said = capsys.readouterr().out
    assert told["verdict"] in said and f"{first['gain']:+.3f} ± {first['gain_stderr']:.3f}" in said
    assert main(["suggest", path, "--page", str(tmp_path)]) == 0
    assert (tmp_path / "suggested.html").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[suggest]\nsteps = 3", r"expected a table \[audit\]"),
        (AUDIT + "[suggest]\nstep = 3", r"\[suggest\] takes ways, steps, .*, got step"),
        (AUDIT + "suggest = 3", "audit"),
        (AUDIT + "[suggest]\nsteps = 0", "steps must be an integer >= 1"),
        (AUDIT + '[suggest]\nways = ["tide"]', "did you mean 'tied'"),
        (AUDIT.replace("build", "without"), r"must return \(model, inputs, targets\)"),
        (AUDIT + "[suggest]\nfolds = 40", "40 folds need at least 80 samples"),
    ],
)
def test_bad_configurations_are_named(tmp_path, capsys, body: str, message: str) -> None:
    assert main(["suggest", config(tmp_path, body)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.count("\n") == 1


def test_check_knows_the_table(tmp_path: Path, capsys) -> None:
    assert main(["check", config(tmp_path, AUDIT + QUICK), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["suggest"]["folds"] == 3
    assert main(["check", config(tmp_path, AUDIT + "[suggest]\nstep = 3")]) == 2


@pytest.mark.parametrize("name", ["suggest_digits", "suggest_robot"])
def test_the_shipped_configurations_name_few_samples(name: str) -> None:
    path = f"configs/experiments/{name}.toml"
    assert main(["check", path]) == 0
    subject = load(path)
    assert len(subject.inputs) == len(subject.targets) <= 256
    assert (MIRROR in subject.claims) == (name == "suggest_robot")
