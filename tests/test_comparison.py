"""The comparison with other tools says what the benchmarks measured."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/comparison.md").read_text()
NETWORKS = ("mlp", "resnet", "gpt")
TOOLS = {
    "eqtoolbox": "eqtoolbox",
    "SciPy `eigsh` on the same product, `tol=1e-3`": "scipy eigsh, tol=1e-3",
    "the same, `ncv=16` (tuned)": "scipy eigsh, tol=1e-3, ncv=16",
    "hessian-eigenthings": "hessian-eigenthings",
    'hessian-eigenthings, `which="LA", max_iter=30` (tuned)': (
        "hessian-eigenthings, LA, max_iter=30"
    ),
    "PyHessian": "pyhessian",
    "curvlinops with `eigsh`, `tol=1e-3`": "curvlinops + eigsh, tol=1e-3",
}


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    return found["results"]


def told(row: dict[str, Any]) -> str:
    said = "right" if row["right"] else f"off by {100 * abs(row['error']):.2g} %"
    return f"{row['gradients']:.0f}, {said}"


@pytest.mark.parametrize("tool", TOOLS)
def test_eigenvalues_are_those_that_were_measured(tool: str) -> None:
    top = results("top_eigenvalues")["top"]
    cells = [told(top[f"{name}, top 5"]["tools"][TOOLS[tool]]) for name in NETWORKS]
    assert f"| {tool} | {' | '.join(cells)} |" in PAGE


def test_verdicts_are_those_that_were_measured() -> None:
    measured = results("equivariance_rivals")
    told = re.findall(r"^\| (.*?) \| (holds|broken) \| (\w+) \| (\w+) \|$", PAGE, re.M)
    cases = {c["case"]: c for part in ("side by side", "e3nn misleads") for c in measured[part]}
    assert len(told) == 6
    for name, truth, theirs, ours in told:
        case = cases[name.replace("\\|", "|").replace("²", "^2")]
        assert (theirs, ours) == (case["e3nn's verdict"], case["our verdict"])
        assert (truth == "holds") is (ours == "holds")


def test_versions_are_those_that_were_measured() -> None:
    for name in ("top_eigenvalues", "equivariance_rivals"):
        for rival, version in results(name)["rivals"].items():
            if version[0].isdigit():
                shown = {"pyhessian": "PyHessian"}.get(rival, rival)
                assert f"{shown} {version}" in PAGE.replace("\n", " ")
