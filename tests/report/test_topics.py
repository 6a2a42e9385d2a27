"""Topics: a question owns its rules and charts, and a caller may ask questions of their own."""

import ast
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eqtoolbox.record import Record
from eqtoolbox.report import Finding, Run, Topic, summary_data, topics
from eqtoolbox.report.figures import Panel, Plot
from eqtoolbox.report.finding import Evidence, Level
from eqtoolbox.report.findings import find
from eqtoolbox.report.page import content, write_page
from eqtoolbox.report.sections import sections
from eqtoolbox.report.topics import TOPICS
from eqtoolbox.report.trace import trace
from tests.report.runs import series

MakeRun = Callable[..., Run]
FILES = sorted(p for p in Path(topics.__file__).parent.glob("*.py") if p.stem != "__init__")
ON_TOP = {"training_panel"}  # the chart that opens the page
NORM = "update_norm/length"


def returning(path: Path, kind: str) -> set[str]:
    """Functions of a file that are no details of others and yield findings or panels."""
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and kind in ast.unparse(node.returns or ast.Constant(None))
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_rule_belongs_to_the_topic_of_its_file(path: Path) -> None:
    """So that a new finding is told by being written into the file of its topic."""
    module = importlib.import_module(f"eqtoolbox.report.topics.{path.stem}")
    own = {rule.__name__ for rule in module.TOPIC.rules} if hasattr(module, "TOPIC") else set()
    assert returning(path, "Finding") == own
    assert not own or module.TOPIC in TOPICS


def test_every_chart_is_shown_once() -> None:
    charts = [chart.__name__ for topic in TOPICS for chart in topic.panels]
    assert len(charts) == len(set(charts))
    assert {name for path in FILES for name in returning(path, "Panel")} - ON_TOP == set(charts)


def test_topics_have_questions_slugs_and_explanations_of_their_own() -> None:
    for said in ("question", "slug", "explanation"):
        texts = [getattr(topic, said) for topic in TOPICS]
        assert all(texts) and len(set(texts)) == len(texts)


def test_the_parts_of_the_page_keep_their_order(rich_run: Path) -> None:
    order = ["equivariance", "asymmetry", "discovery", "conservation", "units", "curvature", "cost"]
    order.insert(-1, "health")
    assert [t.slug for t in TOPICS if t.panels] == order
    found = [s.slug for s in sections(Run(rich_run))]
    assert found == [slug for slug in order if slug in found]


def length(run: Run) -> Iterator[Finding]:
    size = trace(run, NORM)
    if size is not None:
        text = f"The last step is {size.last.value:.2g} long."
        yield Finding(level="note", text=text, evidence=(size.latest(),))


def length_panel(run: Run) -> Iterator[Panel]:
    size = trace(run, NORM)
    if size is not None:
        plot = Plot(last_step=run.last_step)
        plot.line(size, "length", "#3f7fc1")
        yield plot.panel("update-norm", "Length of the steps", "The shorter, the nearer the end.")


MINE = Topic(
    question="How long are the steps?",
    slug="steps",
    explanation="Lengths <b>of</b> updates.",
    rules=(length,),
    panels=(length_panel,),
    probes=("update_norm",),
)


def test_a_topic_of_ones_own_is_told_drawn_and_remarked_on(
    make_run: MakeRun, tmp_path: Path
) -> None:
    rows = series(NORM, [3.0, 2.0]), series("training/loss", [1.0, 0.5])
    plain = make_run(*rows)
    assert "long" not in " ".join(f.text for f in plain.findings())
    assert "The last step is 2 long." in [f.text for f in find(plain, [MINE])]
    assert [s.slug for s in sections(plain, [MINE])] == ["steps"]
    run = Run(plain.path, topics=[MINE])
    assert [f.text for f in run.findings()] == [f.text for f in find(plain, [MINE])]
    assert "The last step is 2 long." in json.dumps(summary_data(run))
    (section,) = content(run)["sections"]
    assert (section.question, section.panels[0].slug) == (MINE.question, "update-norm")
    pytest.importorskip("plotly"), pytest.importorskip("jinja2")
    page = write_page(run, tmp_path / "page.html").read_text()
    assert "How long are the steps?</h2>" in page
    assert ">Lengths &lt;b&gt;of&lt;/b&gt; updates.</p>" in page


def test_what_is_no_topic_is_refused(make_run: MakeRun) -> None:
    run = make_run(series(NORM, [3.0]))
    with pytest.raises(TypeError, match=r"topics must be Topic objects, got 'mine\.py'"):
        Run(run.path, topics=["mine.py"])  # type: ignore[list-item]
    for twice in ([MINE, MINE], [Topic(question="?", slug="cost")]):
        with pytest.raises(ValueError, match=r"slugs of topics must differ, got '(steps|cost)'"):
            Run(run.path, topics=twice)
    with pytest.raises(ValueError, match="question must be a text, got ''"):
        Topic(question="", slug="x")
    with pytest.raises(ValueError, match=r"rules must be a tuple of functions .* written \(f,\)"):
        Topic(question="?", slug="x", rules=length)  # type: ignore[arg-type]


def test_a_run_directory_brings_no_code(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "evil_topic.py").write_text("raise SystemExit('imported')")
    named = {"topics": ["evil_topic.py", "evil_topic:TOPIC"], "probes": {"evil_topic.py:X": {}}}
    run = make_run(series(NORM, [3.0]), **named)
    sys.path.insert(0, str(tmp_path))
    try:
        assert run.topics == ()
        content(Run(run.path))
        assert "evil_topic" not in sys.modules
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "dated", "told"),
    [
        ("Steps are short.", False, "Steps are short (measured once, at step 40)."),
        ("Steps are short", False, "Steps are short (measured once, at step 40)."),
        ("Short, at step 4.", False, "Short, at step 4 (measured once, at step 40)."),
        (
            "It is the only measurement.",
            False,
            "It is the only measurement (measured once, at step 40).",
        ),
        ("Short at step 40.", True, "Short at step 40."),
    ],
)
def test_a_finding_gets_its_step_unless_its_rule_has_said_it(
    text: str, dated: bool, told: str, make_run: MakeRun
) -> None:
    """Whatever the words are: nobody reads them."""
    assert told in [f.text for f in seen_once(make_run, 40, text, "note", dated)]


def seen_once(make_run: MakeRun, step: int, text: str, level: Level, dated: bool) -> list[Finding]:
    """Findings of a run of 60 steps, of which one rests on this step alone."""
    run = make_run(
        [Record(step=step, name=NORM, value=2.0)],
        series("training/loss", [0.9**i for i in range(60)], every=1),
    )

    def rule(run: Run) -> Iterator[Finding]:
        evidence = (Evidence(name=NORM, step=step, value=2.0),)
        yield Finding(level=level, text=text, evidence=evidence, dated=dated)

    return find(run, [Topic(question="How long?", slug="long", rules=(rule,))])


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize(
    ("level", "early"),
    [("good", "good"), ("note", "note"), ("warning", "note"), ("alarm", "note")],
)
def test_what_rests_on_one_early_point_says_so_first_and_warns_of_nothing(
    level: Level, early: Level, dated: bool, make_run: MakeRun
) -> None:
    found = {f.text: f.level for f in seen_once(make_run, 4, "Steps are short.", level, dated)}
    assert found["Seen once, at step 4: Steps are short."] == early
    late = [f.level for f in seen_once(make_run, 40, "Steps are short.", level, dated)]
    assert level in late
