"""Importing eqtoolbox is cheap: torch and numpy, nothing else."""

import subprocess
import sys

import pytest

HEAVY = ["scipy", "pandas", "plotly", "jinja2", "sklearn", "tqdm", "lightning", "transformers"]


def test_import_loads_only_torch_and_numpy() -> None:
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import eqtoolbox;"
        f"new = {{m.split('.')[0] for m in set(sys.modules) - before}};"
        "third = {m for m in new if m not in sys.stdlib_module_names} - {'eqtoolbox'};"
        f"assert not third & set({HEAVY!r}), third; print(sorted(third))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    allowed = {"torch", "numpy", "functorch", "typing_extensions"}
    allowed |= {"_cython_3_2_4", "cython_runtime"}  # of numpy.random
    assert set(eval(done.stdout)) <= allowed, done.stdout


@pytest.mark.parametrize("enabled", [True, False])
def test_import_leaves_the_garbage_collector_as_it_was(enabled: bool) -> None:
    code = (
        f"import gc, torch; (gc.enable if {enabled} else gc.disable)();"
        "before = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.get_debug();"
        "import eqtoolbox;"
        "after = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.get_debug();"
        f"assert before == after and after[0] is {enabled}, (before, after)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
