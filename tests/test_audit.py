"""The audit: a ranked table from a configuration, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from eqtoolbox.audit import audit, text
from eqtoolbox.cli import main

SOURCE = """
import torch
from torch import nn

class Norm(nn.Module):
    def forward(self, x):
        return x.square().sum(-1, keepdim=True).sin()

def build():
    return Norm(), torch.randn(200, 3, generator=torch.Generator().manual_seed(0))

def nothing():
    return 3
"""


def config(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(SOURCE)
    path = folder / "audit.toml"
    path.write_text(body)
    return str(path)


def test_a_radial_function_is_even_and_rotation_invariant_and_nothing_else(tmp_path, capsys):
    path = config(tmp_path, '[audit]\nsource = "mine.py:build"\n')
    assert main(["audit", path, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    holding = {r["candidate"] for r in rows if r["verdict"] == "holds"}
    assert holding == {"o3.invariant", "sign.even"}
    assert [r["verdict"] for r in rows] == ["holds"] * 2 + ["violated"] * (len(rows) - 2)
    assert main(["audit", path]) == 0
    assert "continuous: so(3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x = ", "not valid TOML"),
        ("[probes]", r"expected a table \[audit\]"),
        ('[audit]\nsource = "mine.py:absent"', "has no 'absent'"),
        ('[audit]\nsource = "other.py:build"', "no file"),
        ('[audit]\nsource = "mine.py:nothing"', r"must return \(model, inputs tensor\)"),
        ('[audit]\nsource = "mine.py:build"\nsamples = 0', "samples must be an integer >= 1"),
    ],
)
def test_bad_configurations_are_named(tmp_path, capsys, body: str, message: str) -> None:
    import re

    assert main(["audit", config(tmp_path, body)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_audit_names_layers_and_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.AdaptiveAvgPool2d(1)
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = audit(model, torch.randn(4, 1, 6, 6))
    assert "first broken at 0" in found.culprits["cyclic4.invariant"]
    assert "average it over the group" in text(found)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
