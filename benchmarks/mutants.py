"""Claim: of deliberate bugs in the numerics, 95 % and more are seen by the tests.

Every mutant changes one formula in a copy of the repository and runs the tests that should see it;
it is killed if one of them fails. Survivors are listed by name: each is a test that is missing.

    python benchmarks/mutants.py [NAME ...]
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from environment import store

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0  # seconds for the tests of one mutant


@dataclass(frozen=True)
class Mutant:
    """One wrong formula, and the tests that should see it."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str

    def planted(self, text: str) -> str:
        """The file's text with the bug.

        Raises:
            ValueError: the formula is not there exactly once.
        """
        if text.count(self.right) != 1:
            raise ValueError(f"{self.name}: {self.right!r} must be in {self.file} exactly once")
        return text.replace(self.right, self.wrong)


_TRACKER = "tests/linalg/test_tracker.py tests/linalg/test_tracking_bound.py"
MUTANTS = [
    Mutant(*row)
    for row in (
        ("residuals squared", "linalg/krylov.py", "couplings.square().sum(dim=0).sqrt() + floor",
         "couplings.square().sum(dim=0) + floor", "tests/linalg/test_lanczos.py"),
        ("error bounds 10 times too small", "linalg/lanczos.py",
         "(ritz.residuals**2 / gap).nan_to_num", "(0.1 * ritz.residuals**2 / gap).nan_to_num",
         "tests/linalg/test_lanczos.py"),
        ("standard error over n", "linalg/trace.py", "/ math.sqrt(len(x))", "/ len(x)",
         "tests/linalg/test_spectrum.py"),
        ("first moment once in the rank", "linalg/trace.py", "samples[:, 0] * 2 * ratio",
         "samples[:, 0] * ratio", "tests/linalg/test_spectrum.py"),
        ("density of another mass", "linalg/density.py", "math.sqrt(2 * math.pi)",
         "math.sqrt(math.pi)", "tests/linalg/test_spectrum.py"),
        ("central difference over one step", "linalg/finite_difference.py",
         "scale(0.5 / step, first)", "scale(1.0 / step, first)",
         "tests/linalg/test_finite_difference.py"),
        ("full inverse of the metric", "linalg/preconditioned.py", "diagonal[name].rsqrt()",
         "diagonal[name].reciprocal()", "tests/linalg tests/probes/test_curvature.py"),
        ("small angles from the wrong side", "linalg/subspace.py", "sines.clamp(max=1).asin()",
         "sines.clamp(max=1).acos()", "tests/linalg/test_subspace.py"),
        ("energy of the vector itself", "linalg/subspace.py", ".square().sum()) / total",
         ".abs().sum()) / total", "tests/linalg/test_subspace.py"),
        ("tracker: others stand still", "linalg/tracker.py",
         "self._ceiling * self._growth(top) + pace * (self._age + 1) * size",
         "self._ceiling * self._growth(top)", _TRACKER),
        ("tracker: no rounding", "linalg/tracker.py", "_ROUNDINGS = 100", "_ROUNDINGS = 0",
         "tests/linalg/test_tracking_bound.py"),
        ("tracker: bound ten times too small", "linalg/tracker.py", "(residuals**2 / gap",
         "(0.1 * residuals**2 / gap", _TRACKER),
        ("tracker: bound of residuals only", "linalg/tracker.py",
         "torch.maximum(torch.minimum(residuals, sharp), -gap)",
         "torch.minimum(residuals, sharp)", _TRACKER),
        ("Nesterov's threshold", "probes/stability.py", "/ (1 + 2 * momentum)",
         "/ (1 + momentum)", "tests/probes/test_curvature.py"),
        ("heavy ball's threshold", "probes/stability.py", "(2 + 2 * momentum) / (1 - dampening)",
         "(2 + momentum) / (1 - dampening)", "tests/probes/test_curvature.py"),
        ("Adam's threshold", "probes/stability.py", "(2 + 2 * float(first)) / (1 - float(first))",
         "(2 + float(first)) / (1 - float(first))", "tests/probes/test_curvature.py"),
        ("Adam's bias correction", "probes/stability.py",
         "square / (1 - float(second) ** float(state[\"step\"]))", "square",
         "tests/probes/test_curvature.py"),
        ("RMSprop not centred", "probes/stability.py", "square - state[\"grad_avg\"].square()",
         "square", "tests/probes/test_curvature.py"),
        ("smallest angle as turn", "probes/alignment.py", "principal_angles(last, top)[-1]",
         "principal_angles(last, top)[0]", "tests/probes/test_curvature.py"),
        ("decrease without its second half", "probes/alignment.py", "- 0.5 * bend", "+ 0.5 * bend",
         "tests/probes/test_curvature.py"),
        ("Rayleigh quotient over the norm", "probes/alignment.py", "/ dot(gradient, gradient)",
         "/ norm(gradient)", "tests/probes/test_curvature.py"),
        ("causes of unmeasured steps", "probes/conservation.py",
         "step = since * torch.stack", "step = torch.stack",
         "tests/laws/test_budget.py"),
        ("finite step without its half", "weights/charges/charges.py", "finite = 0.5 * second",
         "finite = second", "tests/laws/test_budget.py tests/laws/test_charges.py"),
        ("allowance of an epsilon", "probes/leftover.py", "return 3 * float((began",
         "return 300 * float((began", "tests/laws/test_approximate_gradient.py"),
        ("norm after the step", "probes/balance.py", "[where] - drift)).clamp_min(TINY).sqrt()",
         "[where] + drift)).clamp_min(TINY).sqrt()", "tests/laws/test_forecast.py"),
        ("turn without the radial part", "probes/balance.py", "norm + along)", "norm - along)",
         "tests/laws/test_forecast.py"),
        ("zeroth order ten times smaller", "probes/noether.py", "value = norm(law.defect) / total",
         "value = 0.1 * norm(law.defect) / total",
         "tests/probes/test_noether.py tests/laws tests/probes/test_symmetry_probes.py"),
        ("orbit variance of all pairs", "symmetry/variance.py", "/ (len(products) - 1) ** 2",
         "/ len(products) ** 2", "tests/symmetry/test_variance.py"),
        ("orbit variance without the identity", "symmetry/variance.py",
         "within = others**2 * variance + self.share * others * level",
         "within = others**2 * variance", "tests/symmetry/test_variance.py"),
        ("percent of the twirl's loss", "symmetry/price.py",
         "100.0 * (mean - of_twirl) / mean if", "100.0 * (mean - of_twirl) / of_twirl if",
         "tests/symmetry/test_price.py"),
        ("error of one element", "symmetry/equivariance.py", "math.sqrt(residual / count)",
         "math.sqrt(residual)", "tests/symmetry/test_equivariance.py"),
        ("rate of the whole batch", "symmetry/lie.py", "rate=rate / math.sqrt(len(base))",
         "rate=rate", "tests/symmetry/test_lie.py tests/symmetry/test_formulas.py"),
        ("half of the way to balance", "weights/orbit/canonical.py", "-0.5 * square.log()",
         "-square.log()", "tests/laws/test_canonical.py"),
        ("no gap is wide enough", "symmetry/nullspace.py", "GAP = 6.5", "GAP = 60.0",
         "tests/symmetry/test_algebra.py tests/probes/test_learned.py"),
        ("every gap is wide enough", "symmetry/nullspace.py", "GAP = 6.5", "GAP = 3.0",
         "tests/symmetry/test_algebra.py tests/probes/test_learned.py"),
        ("maps not turned back", "symmetry/nullspace.py", "_span(upright @ related)",
         "_span(related)", "tests/symmetry/test_algebra.py"),
        ("rows where nothing changes", "symmetry/nullspace.py",
         "torch.maximum(known.expand_as(size), size / 2)",
         "torch.where(size > 0, size, known.expand_as(size))", "tests/symmetry/test_algebra.py"),
        ("closure of zero over zero", "symmetry/classical.py", "/ (size[i] * size[:i])",
         "/ c.norm(dim=1)", "tests/symmetry/test_algebra.py"),
        ("any codimension one is special", "symmetry/classical.py",
         "special = float(traces.norm()) <", "special = 0.0 * float(traces.norm()) <",
         "tests/symmetry/test_algebra.py"),
    )
]  # fmt: skip


def killed(mutant: Mutant, copy: Path) -> bool:
    """Whether a test fails with the bug in the copy; the copy is put back."""
    path = copy / "eqtoolbox" / mutant.file
    text = path.read_text()
    path.write_text(mutant.planted(text))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    given = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*command, *mutant.tests.split()], cwd=copy, env=given, timeout=PATIENCE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True  # it hangs: CI would see it
    finally:
        path.write_text(text)
    if done.returncode not in (0, 1):  # neither passed nor failed
        raise RuntimeError(f"{mutant.name}: the tests did not run:\n{done.stdout[-2000:]}")
    return done.returncode == 1


def main() -> None:
    asked = [m for m in MUTANTS if m.name in sys.argv[1:] or not sys.argv[1:]]
    with tempfile.TemporaryDirectory() as home:
        copy = Path(home) / "copy"
        unwanted = shutil.ignore_patterns(".git", ".venv", "__pycache__", "runs", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=unwanted)
        fates = {}
        for mutant in asked:
            fates[mutant.name] = killed(mutant, copy)
            print(f"{'killed' if fates[mutant.name] else 'SURVIVED':9s} {mutant.name}", flush=True)
    survivors = [name for name, dead in fates.items() if not dead]
    rate = 1 - len(survivors) / max(len(fates), 1)
    print(f"{rate:.1%} of {len(fates)} killed")
    if len(asked) == len(MUTANTS):
        print(store("mutants", {"mutants": len(fates), "rate": rate, "survivors": survivors}))


if __name__ == "__main__":
    main()
