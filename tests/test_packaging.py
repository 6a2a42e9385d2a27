"""What is said of the package in several places is the same in all of them."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

import eqtoolbox

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
CONDA = {"torch": "pytorch"}  # names that differ there
DOTS = {".gitignore", ".pre-commit-config.yaml"}  # of the repository alone


def read(path: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())
    return found


def spaced(requirement: str) -> str:
    """A requirement as conda writes it: "torch>=2.6" -> "pytorch >=2.6"."""
    name, sign, version = requirement.partition(">=")
    return f"{CONDA.get(name, name)} {sign}{version}".strip()


def test_conda_installs_what_pip_installs() -> None:
    recipe = read(".ci/conda/recipe.yaml")
    needed = recipe["requirements"]
    python = f"python {PROJECT['requires-python']}"
    assert recipe["package"] == {"name": PROJECT["name"], "version": eqtoolbox.__version__}
    assert needed["run"] == [python, *map(spaced, PROJECT["dependencies"])]
    assert needed["host"] == [python, "pip", *SETTINGS["build-system"]["requires"]]
    scripts = [f"{name} = {place}" for name, place in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    assert recipe["about"]["summary"] == PROJECT["description"]
    assert recipe["about"]["license"] == PROJECT["license"]
    assert (ROOT / ".ci/conda" / recipe["source"]["path"]).resolve() == ROOT.resolve()


def test_who_cites_finds_version_licence_authors_and_the_article() -> None:
    cited = read("docs/CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["title"], cited["version"]) == (PROJECT["name"], eqtoolbox.__version__)
    assert cited["license"] == PROJECT["license"] and cited["keywords"] == PROJECT["keywords"]
    assert cited["authors"] == PROJECT["authors"]
    (article,) = cited["references"]
    assert article["title"] == "An Equivariance Toolbox for Learning Dynamics"
    assert article["url"] == PROJECT["urls"]["Paper"] and "2512.21447" in article["url"]
    assert article["title"] in (ROOT / "README.md").read_text()


def test_classifiers_name_every_python_from_the_oldest_on() -> None:
    named = [c.rpartition(" :: ")[2] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    assert named == [f"3.{minor}" for minor in range(11, 15)]
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_the_source_archive_has_all_that_the_tests_read() -> None:
    included = set(SETTINGS["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    assert all((ROOT / name).exists() for name in included)
    if not (ROOT / ".git").exists():
        pytest.skip("no repository to compare with")
    import subprocess

    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    tops = {line.split("/")[0] for line in listed.splitlines()}
    assert tops - DOTS <= included | {"pyproject.toml"}


def test_no_address_is_made_up() -> None:
    assert PROJECT["urls"].keys() == {"Paper"}
