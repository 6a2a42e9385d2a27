"""Audits of structured batches through the command line: dicts, tuples, dataclasses, own claims."""

import json
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from eqtoolbox.command.audit_table import text
from eqtoolbox.command.cli import main
from eqtoolbox.replay.reading import Reading, closed, opened
from eqtoolbox.symmetry.audit import audit
from eqtoolbox.symmetry.structured import structured_candidates

SOURCE = '''
import torch
from torch import nn
from eqtoolbox.symmetry import E3, Each, Equivariance
from eqtoolbox.symmetry.actions.action import trivial
from eqtoolbox.symmetry.actions.linear import positions, vectors


class Springs(nn.Module):
    """Energy and forces of point charges, and a force that all of them feel."""

    def __init__(self, wind):
        super().__init__()
        self.wind = nn.Parameter(torch.tensor([wind, 0.0, 0.0]))
        self.named = nn.Identity()

    def forward(self, places, charges):
        pairs = places[:, :, None] - places[:, None]
        strength = charges[:, :, None] * charges[:, None] * torch.exp(-pairs.square().sum(-1))
        forces = self.named((strength[..., None] * pairs).sum(2) + self.wind)
        return {"energy": strength.sum((1, 2)), "forces": forces}


def batch():
    rng = torch.Generator().manual_seed(0)
    places = torch.randn(64, 5, 3, generator=rng)
    return {"places": places, "charges": torch.rand(64, 5, generator=rng) + 0.5}


def kept():
    x = batch()
    return Springs(0.0), x, Springs(0.0)(**x)


def windy():
    x = batch()
    return Springs(0.3), x, Springs(0.0)(**x)


def as_tuple():
    return Springs(0.0), tuple(batch().values())


def strings():
    return Springs(0.0), "molecules"


CLAIM = Equivariance(
    E3(),
    Each({"places": positions, "charges": trivial}),
    Each({"energy": trivial, "forces": vectors}),
    name="motions",
)
WRONG = Equivariance(E3(), Each({"places": positions}), trivial, name="forgotten")
NOTHING = 3
'''


def run(folder, capsys, build: str, extra: str = "", json_too: bool = True):
    (folder / "mine.py").write_text(SOURCE)
    config = folder / "audit.toml"
    config.write_text(f'[audit]\nsource = "mine.py:{build}"\nsamples = 4\n{extra}')
    code = main(["audit", str(config), *(["--json"] if json_too else [])])
    return code, capsys.readouterr()


def rows(out) -> dict[str, dict]:
    return {row["candidate"]: row for row in json.loads(out.out)}


def test_a_dict_of_leaves_is_audited_with_targets_and_a_claim_of_ones_own(tmp_path, capsys) -> None:
    code, out = run(tmp_path, capsys, "kept", 'symmetries = ["mine.py:CLAIM"]\n')
    assert code == 0
    found = rows(out)
    holding = {name for name, row in found.items() if row["verdict"] == "holds"}
    kept = {"motions", "symmetric5.equivariant", "o3.places.equivariant", "e3.places.equivariant"}
    assert kept | {"sign.charges.even"} <= holding
    broken = {"symmetric5.invariant", "o3.places.invariant", "sign.charges.odd", "scalings.degree2"}
    assert all(found[name]["verdict"] == "violated" for name in broken)
    assert found["motions"]["parts"]["energy"] < 1e-5
    assert found["o3.places.equivariant"]["data_verdict"] == "holds"
    assert found["sign.charges.even"]["data_verdict"] == "violated"  # charges are positive


def test_a_planted_wind_breaks_turns_and_not_numbers_and_its_layer_is_named(
    tmp_path, capsys
) -> None:
    code, out = run(tmp_path, capsys, "windy")
    assert code == 0
    found = rows(out)
    assert found["symmetric5.equivariant"]["verdict"] == "holds"
    assert found["o3.places.equivariant"]["verdict"] == "violated"
    assert found["o3.places.equivariant"]["first_broken"] == "named"
    assert found["o3.places.equivariant"]["parts"]["energy"] < 1e-5
    assert found["o3.places.equivariant"]["parts"]["forces"] > 0.1


def test_the_table_fits_a_terminal_and_tells_each_cause_once(tmp_path, capsys) -> None:
    code, out = run(tmp_path, capsys, "as_tuple", json_too=False)
    lines = out.out.splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("o3.places.equivariant") for line in lines)  # named by its argument
    table = lines[: lines.index("")]
    assert len(table) == len({line.split()[0] for line in table})
    sentences = [line for line in lines[len(table) :] if "first broken at" in line]
    assert len(sentences) == len(set(sentences)) > 0


@pytest.mark.parametrize(
    ("build", "extra", "message"),
    [
        ("strings", "", "inputs and targets being tensors or dicts, tuples"),
        ("kept", 'symmetries = ["mine.py:NOTHING"]', "must be an Equivariance, got 3"),
        ("kept", 'symmetries = "mine.py:CLAIM"', r"must be a list such as \["),
        ("kept", 'symmetries = ["CLAIM"]', r"must be a list such as \["),
    ],
)
def test_what_is_no_batch_or_claim_is_named(tmp_path, capsys, build, extra, message) -> None:
    import re

    code, out = run(tmp_path, capsys, build, extra)
    assert code == 2
    assert re.search(message, out.err)


def test_a_claim_that_forgets_a_leaf_is_a_row_with_its_reason(tmp_path, capsys) -> None:
    code, out = run(tmp_path, capsys, "kept", 'symmetries = ["mine.py:WRONG"]')
    row = rows(out)["forgotten"]
    assert (code, row["verdict"]) == (0, "not_applicable")
    assert "give every leaf an action" in row["note"]


@dataclass
class Graph:
    """A batch of one's own."""

    nodes: Tensor
    name: str = "graph"


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Total(nn.Module):
    """Sums what it is given, whatever holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Linear(3, 2)

    def forward(self, batch: Graph | Pair) -> Tensor:
        x = batch.nodes if isinstance(batch, Graph) else batch.left + batch.right
        return self.weigh(x).sum(1)


def test_dataclasses_and_named_tuples_reach_the_model_as_they_are() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 4, 3)
    for batch, leaf in ((Graph(nodes=x), "nodes"), (Pair(x, 2 * x), "left")):
        model = Total()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        found = {s.symmetry.name: s.result.verdict for s in audit(model, batch).scores}
        assert found["symmetric4.invariant"] == "holds"
        assert found[f"o3.{leaf}.invariant"] == "violated"
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    blamed = audit(Total(), Graph(nodes=x)).culprits["o3.nodes.invariant"]
    assert blamed.layer == "weigh"
    assert "first broken at weigh" in text(audit(Total(), Graph(nodes=x)))


def test_what_is_opened_is_closed_again() -> None:
    batch = {"a": (Graph(nodes=torch.ones(2)), [Pair(torch.ones(2), torch.zeros(2))]), "b": 3}
    tree = opened(batch)
    assert tree["a"][0] == {"nodes": tree["a"][0]["nodes"], "name": "graph"}
    back = closed(tree, batch)
    assert isinstance(back["a"][0], Graph) and isinstance(back["a"][1][0], Pair)
    assert back["a"][1][0].right is batch["a"][1][0].right


def test_dicts_that_name_arguments_are_spread_and_others_are_not() -> None:
    class Whole(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["x"]

    class Named(nn.Module):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            return x

    batch = {"x": torch.ones(2)}
    assert not Reading(Whole(), batch).by_name
    assert Reading(Named(), batch).by_name
    assert torch.equal(Reading(Whole(), batch)(batch), Reading(Named(), batch)(batch))


def test_candidates_follow_the_shapes_of_the_leaves() -> None:
    rng = torch.Generator().manual_seed(0)
    graph = {
        "nodes": torch.randn(4, 6, 2, generator=rng),
        "near": torch.randint(0, 6, (4, 2, 9), generator=rng),
        "mask": torch.ones(4, 6, dtype=torch.bool),
        "adjacency": torch.randn(4, 6, 6, generator=rng),
    }
    found = {c.name: c for c in structured_candidates(graph, {"y": torch.ones(4, 6)})}
    parts = found["symmetric6.equivariant"].input_action.parts
    assert repr(parts["near"]) == "Relabel()"
    assert parts["adjacency"].dims == (1, 2)
    assert parts["mask"].dims == (1,)
    assert "o2.nodes.invariant" in found and "o2.mask.invariant" not in found
    images = (torch.randn(4, 1, 6, 6, generator=rng), torch.randn(4, 3, generator=rng))
    found = {c.name for c in structured_candidates(images, images[0])}
    assert {"cyclic4.equivariant", "flip.invariant", "translation.invariant"} <= found
