"""Notes are for people: no rule and no chart reads one, whatever it says."""

import ast
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eqtoolbox as eq
from eqtoolbox.record.facts import Facts
from eqtoolbox.report import Finding, Run, Topic
from eqtoolbox.report.old_notes import facts_in
from eqtoolbox.report.sections import sections
from tests.conftest import mlp
from tests.report.runs import rich_records, with_facts, write_run

REPORT = Path(eq.__file__).parent / "report"
TOPICS = [*sorted((REPORT / "topics").glob("*.py")), REPORT / "findings.py"]


def reads_of_notes(source: str) -> list[int]:
    """Lines of a source that read the note of a record, as far as it can be seen."""

    def reads(node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr == "note" or node.attr == "__dict__"
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            given = [*node.args, *(k.value for k in node.keywords if k.arg != "level")]
            texts = {a.value for a in given if isinstance(a, ast.Constant)}
            unknown = called == "getattr" and not isinstance(node.args[1], ast.Constant)
            whole = {"vars", "attrgetter", "asdict", "astuple", "frame", "to_json"}
            return called in whole or unknown or "note" in texts
        return isinstance(node, ast.Subscript) and ast.unparse(node.slice) == "'note'"

    return [node.lineno for node in ast.walk(ast.parse(source)) if reads(node)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", TOPICS, ids=lambda p: p.stem)
def test_no_rule_reads_a_note(path: Path) -> None:
    assert len(TOPICS) > 10
    assert reads_of_notes(path.read_text()) == []


@pytest.mark.parametrize(
    "code",
    ["row.note", "run.rows(name)[-1].note.startswith('x')", "run.column(name, 'note')",
     "getattr(row, 'note')", "row.to_json()['note']", "vars(row)", "run.frame(True)",
     "run.column(name, field='note')", "run.frame(long=True)", "row.to_json().get('note')",
     "dataclasses.asdict(row)", "[getattr(row, c) for c in FIELDS]"],
)  # fmt: skip
def test_a_rule_that_reads_a_note_is_caught(code: str) -> None:
    """Must fail; a finding of level note is none."""
    assert reads_of_notes(f"def rule(run):\n    yield {code}\n") == [2] * (
        2 if "to_json()" in code else 1
    )
    assert reads_of_notes("Finding(level='note', text='x')") == []


class Normed(nn.Module):
    """A network with a normalisation, whose scale symmetry holds but for its epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, eps=1e-2)
        self.last = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))).flatten(1))


def twins() -> nn.Sequential:
    """A network with two equal units and a dead one."""
    model = nn.Sequential(nn.Flatten(), *mlp(36, 6, 5, 3))
    with torch.no_grad():
        model[1].weight[1], model[1].bias[1] = model[1].weight[0], model[1].bias[0]
        model[3].weight[:, 1] = model[3].weight[:, 0]
        model[1].weight[3], model[1].bias[3] = 0.0, -1.0
    return model


def trained(home: Path, model: nn.Module, probes: str, **options: Any) -> Path:
    """A run of 12 steps; `caught`: whether its loss is known, `held`: how many parameters move."""
    held = list(model.parameters())[: options.get("held")]
    optimizer = options.get("optimizer", torch.optim.SGD)(held, lr=0.05)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 1, 6, 6, generator=generator)
    y = torch.randint(3, (20,), generator=generator)

    def loss(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(m(x), y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what the faulty ones are warned of
        with eq.attach(
            model, optimizer, probes=probes, schedule=4, budget=None, run_dir=home
        ) as monitor:
            measured = monitor.loss(loss) if options.get("caught", True) else loss
            for step in range(12):
                optimizer.zero_grad()
                value = measured(model, x, y)
                (value * (math.nan if step == options.get("lost") else 1.0)).backward()
                optimizer.step()
    return home


RUNS: dict[str, Callable[[Path], Path]] = {
    "normalised": lambda home: trained(home, Normed(), "standard"),
    "twins": lambda home: trained(home, twins(), "full", optimizer=torch.optim.Adam),
    "unknown loss": lambda home: trained(home, twins(), "light", caught=False),
    "half of the parameters, then NaN": lambda home: trained(
        home, twins(), "standard", held=2, lost=9
    ),
    "rich": lambda home: write_run(
        home, [replace(with_facts(r), note=r.note) for r in rich_records()], format=2
    ),
}


@pytest.fixture(scope="module", params=RUNS)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return RUNS[request.param](tmp_path_factory.mktemp("notes") / "run")


def rewritten(run: Path, home: Path, change: Callable[[dict[str, Any]], Any], **info: Any) -> Path:
    """A copy of a run with every row changed."""
    home.mkdir()
    rows = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    rows = [row for row in rows if not (info and row["name"].startswith(VITAL))]
    (home / "records.jsonl").write_text("".join(json.dumps(change(row)) + "\n" for row in rows))
    (home / "events.jsonl").write_bytes((run / "events.jsonl").read_bytes())
    if (run / "arrays.bin").exists():
        (home / "arrays.bin").write_bytes((run / "arrays.bin").read_bytes())
    (home / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | info))
    return home


def reworded(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"note": "alarm: sharpness * 9 in the metric of a and b; epsilon, monitor.loss: 3"}


def told(run: Run) -> list[Finding]:
    """Findings with NaN as a word, so that they can be compared."""
    return [
        replace(f, evidence=tuple(replace(e, value=repr(e.value)) for e in f.evidence))  # type: ignore[arg-type]
        for f in run.findings()
    ]


def drawn(run: Run) -> Iterator[tuple[str, str]]:
    """Title, words and lines of every figure but the marks over which notes are shown."""
    for section in sections(run):
        for panel in section.panels:
            lines = [line for line in panel.figure["data"] if line.get("yaxis") != "y2"]
            said = panel.title, panel.reading, panel.figure["layout"], lines
            yield panel.slug, repr(said)


def test_other_notes_change_no_finding_and_no_figure(recorded: Path, tmp_path: Path) -> None:
    run, other = Run(recorded), Run(rewritten(recorded, tmp_path / "other", reworded))
    assert {r.note for r in other.records()} == {reworded({})["note"]}
    assert len(told(run)) > 1
    assert told(run) == told(other)
    assert list(drawn(run)) == list(drawn(other))


def test_an_old_run_says_from_its_notes_what_a_new_one_says_from_its_facts(
    recorded: Path, tmp_path: Path
) -> None:
    old = rewritten(
        recorded,
        tmp_path / "old",
        lambda row: {key: value for key, value in row.items() if key != "facts"},
        format=1,
    )
    new = rewritten(recorded, tmp_path / "new", lambda row: row, format=2)
    assert told(Run(old)) == told(Run(new))


def test_a_rule_that_reads_notes_is_caught_by_other_notes(recorded: Path, tmp_path: Path) -> None:
    """Must fail."""

    def rule(run: Run) -> Iterator[Finding]:
        yield Finding(level="note", text=f"{sorted({r.note for r in run.records()})}.")

    topic = Topic(question="What do notes say?", slug="notes", rules=(rule,))
    other = rewritten(recorded, tmp_path / "other", reworded)
    assert told(Run(recorded, topics=[topic])) != told(Run(other, topics=[topic]))


def near(facts: Facts) -> dict[str, Any]:
    """Facts with numbers as prose has them, without what is not so."""
    return {
        name: f"{value:.2g}" if type(value) is float else value
        for name, value in facts.items()
        if value is not False and value != ()
    }


def test_what_the_notes_of_old_runs_tell_is_what_facts_say(recorded: Path) -> None:
    for row in Run(recorded).records():
        if row.name.startswith(VITAL):
            continue
        found = facts_in(row.name, row.status, row.note) if row.note else {}
        known = {name: fact for name, fact in row.facts.items() if name not in SINCE}
        assert near(Facts(found)) == near(Facts(known)), row


VITAL = "vital/"  # records that no run of format 1 has
SINCE = ("way", "confirmed")  # facts that no run of format 1 has


def asked(paths: Iterable[Path]) -> set[str]:
    """Names of the facts that rules and charts ask for."""
    kinds = {"text", "number", "flag", "count", "texts", "counts"}
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "map" or ("." in called and called.rpartition(".")[2] in kinds):
                inside = [n for a in node.args for n in ast.walk(a) if isinstance(n, ast.Constant)]
                found |= {n.value for n in inside if isinstance(n.value, str)}
    return found


def named(*places: str) -> set[Any]:
    """All constants in the files below these places of the package."""
    home = Path(eq.__file__).parent
    sources = [f.read_text() for place in places for f in sorted(home.glob(place))]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    return {node.value for node in nodes if isinstance(node, ast.Constant)}


def test_every_fact_that_a_rule_asks_for_is_written_and_told_by_old_notes() -> None:
    vital = [path for path in TOPICS if path.stem == "health"]
    others = asked(set(TOPICS) - set(vital))
    assert len(others) > 20
    assert others <= named("probes/*.py", "watch/*.py")
    assert others - {"begun", "times"} <= named("report/old_notes.py"), "what format 1 did not tell"
    assert "layers" in asked(vital) and asked(vital) <= named("watch/vitals/*.py")
