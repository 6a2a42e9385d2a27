"""The audit: a ranked table from a configuration, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from eqtoolbox.command.audit_table import data, text
from eqtoolbox.command.cli import main
from eqtoolbox.symmetry.audit import audit
from eqtoolbox.symmetry.candidates import candidates, rank

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
    mirrors = {f"mirror{axis}.even" for axis in range(3)}
    assert holding == {"o3.invariant", "sign.even", "symmetric3.invariant"} | mirrors
    assert [r["verdict"] for r in rows] == ["holds"] * 6 + ["violated"] * (len(rows) - 6)
    assert {r["data_verdict"] for r in rows if r["candidate"] == "scalings.degree1"} == {"violated"}
    assert main(["audit", path]) == 0
    assert "continuous: so(3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x = ", "not valid TOML"),
        ("[probes]", r"expected a table \[audit\]"),
        ('[audit]\nsource = "mine.py:absent"', "has no 'absent'"),
        ('[audit]\nsource = "other.py:build"', "no file"),
        ('[audit]\nsource = "mine.py:nothing"', r"must return \(model, inputs\)"),
        ('[audit]\nsource = "mine.py:build"\nsamples = 0', "samples must be an integer >= 2"),
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
    assert found.culprits["cyclic4.invariant"].layer == "0"
    assert "average it over the group" in text(found)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_data_are_ranked_beside_the_model() -> None:
    """A model even in x, data that are not: their first coordinate is positive."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    x[:, 0] = x[:, 0].abs()
    model = torch.nn.Linear(2, 1)
    found = audit(Even(model), x, x[:, :1])
    (row,) = [r for r in data(found) if r["candidate"] == "mirror0.even"]
    assert (row["verdict"], row["data_verdict"]) == ("holds", "violated")
    (row,) = [r for r in data(found) if r["candidate"] == "mirror1.even"]
    assert (row["verdict"], row["data_verdict"]) == ("violated", "holds")
    table = text(found).splitlines()
    assert table[0].split() == [
        "candidate", "model", "error", "floor", "data", "distance", "first", "broken", "at",
    ]  # fmt: skip
    few = audit(Even(model), x[:4])
    assert few.data == {}


class Even(torch.nn.Module):
    """Even in the first coordinate, of no symmetry in the second."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.stack([x[:, 0].square(), x[:, 1].exp()], 1))


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((4, 1, 3, 3, 3), {"octahedral.invariant"}),
        ((4, 5, 3), {"reversal.invariant", "roll.invariant", "symmetric5.invariant"}),
        ((4, 2, 4, 4), {"cyclic4.invariant", "field-dihedral4.invariant"}),
        ((4, 3), {"mirror2.odd", "o3.invariant", "symmetric3.invariant"}),
    ],
)
def test_candidates_fit_the_shapes(shape, names: set[str]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    total = lambda x: x.abs().sum(tuple(range(1, x.dim())))[:, None]
    found = rank(total, x, candidates(x, total(x)))
    assert names <= {s.symmetry.name for s in found}
    assert all(s.result is not None for s in found)
    held = {s.symmetry.name for s in found if s.result.verdict == "holds"}
    assert {n for n in names if "o3" not in n and "odd" not in n and "field" not in n} <= held
    assert "mirror2.odd" not in held
