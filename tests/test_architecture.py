"""The house: rooms on nine floors, imports that run downward, no circle, small files."""

import ast
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "eqtoolbox"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (
    {"moved"},  # paths of 0.1, without imports of their own
    {"expect"},  # what is expected of arguments and of time: every floor stands on it
    {"world"},  # processes that train together: a loss may be that of all of them
    {"linalg", "record", "replay"},
    {"report", "sinks", "symmetry", "watch", "weights"},
    {"act", "enforce"},
    {"choose", "demos", "probes"},
    {"attach"},
    {"command", "integrations", "eqtoolbox"},
    {"__main__"},
)
LONGEST = 300  # lines of a file
HEIGHT = 30  # imports on the longest way down, from the command line; may only shrink

Graph = Mapping[str, frozenset[str]]


def name_of(path: Path) -> str:
    """The module of a file, without the package; a package by its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "eqtoolbox"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is looked at in one file."""

    says: str  # its docstring
    lines: int
    imports: tuple[tuple[str, str], ...]
    bodies: tuple[int, ...]  # lines of each function, docstrings left out
    classes: tuple[str, ...]


@cache
def read(path: Path) -> Source:
    """Each file is parsed once, and its tree forgotten."""
    text = path.read_text()
    tree = ast.parse(text)
    return Source(
        says=ast.get_docstring(tree) or "",
        lines=len(text.splitlines()),
        imports=tuple(imported(tree, MODULES)),
        bodies=tuple(bodies(tree)),
        classes=tuple(n.name for n in tree.body if isinstance(n, ast.ClassDef)),
    )


def statements(node: ast.AST, *, typing: bool) -> Iterator[ast.AST]:
    """Statements at any depth, and what holds some; with those for type checkers or without."""
    for child in ast.iter_child_nodes(node):
        if not typing and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child
            yield from statements(child, typing=typing)


def imported(tree: ast.AST, modules: frozenset[str]) -> Iterator[tuple[str, str]]:
    """What a source imports at any depth, but for type checkers: (module, name)."""
    for node in statements(tree, typing=False):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: import from the defining module"
            if node.module == "eqtoolbox" or (node.module or "").startswith("eqtoolbox."):
                where = (node.module or "").removeprefix("eqtoolbox").removeprefix(".")
                for alias in node.names:
                    inner = f"{where}.{alias.name}" if where else alias.name
                    yield (inner if inner in modules else where or "eqtoolbox"), alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("eqtoolbox."):
                    yield alias.name.removeprefix("eqtoolbox."), ""


def bodies(tree: ast.AST) -> Iterator[int]:
    """Lines of all function bodies, docstrings left out."""
    for node in statements(tree, typing=True):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                yield (body[-1].end_lineno or 0) - body[0].lineno + 1


MODULES = frozenset(map(name_of, SOURCES))


@cache
def files() -> Graph:
    """Which modules each module imports."""
    return {
        name_of(path): frozenset(m for m, _ in read(path).imports if m in MODULES) - {name_of(path)}
        for path in SOURCES
    }


def joined(graph: Graph, parts: int) -> Graph:
    """The same graph of packages: modules that share so many first words are one."""
    found: dict[str, set[str]] = {}
    for module, others in graph.items():
        here = ".".join(module.split(".")[:parts])
        there = {".".join(other.split(".")[:parts]) for other in others}
        found.setdefault(here, set()).update(there - {here})
    return {here: frozenset(there) for here, there in found.items()}


def circles(graph: Graph) -> set[frozenset[str]]:
    """Modules that import each other, directly or through others."""

    def behind(start: str) -> frozenset[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            here = todo.pop()
            if here not in seen:
                seen.add(here)
                todo += graph.get(here, ())
        return frozenset(seen)

    reached = {module: behind(module) for module in graph}
    return {
        frozenset(m for m in reached[module] if module in reached[m])
        for module in graph
        if module in reached[module]
    }


def heights(graph: Graph) -> dict[str, int]:
    """How many imports lead down from each, along the longest way."""

    @cache
    def height(module: str) -> int:
        return 1 + max((height(m) for m in graph.get(module, ())), default=-1)

    return {module: height(module) for module in graph}


def test_no_circle_anywhere() -> None:
    assert circles(files()) == set()


@pytest.mark.parametrize("depth", [1, 2, 3], ids=["rooms", "rooms of rooms", "their rooms"])
def test_no_circle_of_rooms(depth: int) -> None:
    assert circles(joined(files(), depth)) == set()


def test_imports_run_downward() -> None:
    """No arrow between two rooms of one floor, none upward."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    rooms = joined(files(), 1)
    assert rooms.keys() == floor.keys(), "every room has a floor"
    upward = {(a, b) for a, others in rooms.items() for b in others if floor[a] <= floor[b]}
    assert upward == set()


def test_a_circle_and_an_upward_import_are_caught() -> None:
    graph = {"a": frozenset({"b"}), "b": frozenset({"c.x"}), "c.x": frozenset({"a"})}
    assert circles(graph) == {frozenset({"a", "b", "c.x"})}
    assert circles({**graph, "c.x": frozenset()}) == set()
    assert circles(
        joined({"a.x": frozenset({"b"}), "b": frozenset({"a.y"}), "a.y": frozenset()}, 1)
    )
    modules = frozenset({"watch.monitor", "report"})
    source = "def f():\n    from eqtoolbox.watch import monitor\nfrom eqtoolbox.report import Run"
    assert {m for m, _ in imported(ast.parse(source), modules)} == {"watch.monitor", "report"}


def test_the_house_does_not_grow_in_height() -> None:
    assert max(heights(files()).values()) <= HEIGHT


def test_names_that_begin_with_an_underscore_stay_in_their_file() -> None:
    crossed = {
        (name_of(path), name)
        for path in SOURCES
        for _, name in read(path).imports
        if name.startswith("_") and not name.startswith("__")
    }
    assert crossed == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_is_short_and_says_in_one_sentence_what_it_is(path: Path) -> None:
    assert read(path).says
    assert read(path).lines <= LONGEST


def test_files_and_functions_are_short_as_a_rule() -> None:
    lines = {path: read(path).lines for path in SOURCES}
    lengths = [length for path in SOURCES for length in read(path).bodies]
    assert statistics.median(lines.values()) <= 120
    assert statistics.quantiles(lengths, n=10)[-1] <= 18
    rooms: dict[str, int] = {}
    for path, count in lines.items():
        rooms[name_of(path).split(".")[0]] = rooms.get(name_of(path).split(".")[0], 0) + count
    assert max(rooms.values()) <= 0.25 * sum(rooms.values())


PUBLIC = {"": 20, "symmetry": 30, "weights": 15, "probes": 15, "linalg": 20}


@pytest.mark.parametrize(("room", "most"), PUBLIC.items())
def test_public_names_stay_few(room: str, most: int) -> None:
    import importlib

    package = importlib.import_module(f"eqtoolbox.{room}".rstrip("."))
    assert len(package.__all__) <= most
    assert all(hasattr(package, name) for name in package.__all__)


SAME = {"EqCallback", "EquivarianceError"}  # one in each framework; the probe and the metric
SUBJECTS = {  # files of one name on several floors, all about the same thing
    "algebra", "asymmetry", "charges", "conservation", "curvature", "diagonal",
    "discrete", "epsilon", "equivariance", "experts", "fields", "flow", "gradient", "graph",
    "head", "kinds", "learned", "linear", "memory", "precision", "prediction", "run", "spectrum",
    "stability", "through", "trace", "units", "widened", "words",
}  # fmt: skip


def test_a_class_has_a_name_of_its_own() -> None:
    names = [name for path in SOURCES for name in read(path).classes]
    twice = {name for name in names if names.count(name) > 1 and not name.startswith("_")}
    assert twice == SAME


def test_files_that_share_a_name_are_listed() -> None:
    names = [path.stem for path in SOURCES if not path.stem.startswith("__")]
    assert {name for name in names if names.count(name) > 1} == SUBJECTS
