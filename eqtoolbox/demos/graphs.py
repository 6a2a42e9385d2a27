"""Small graphs: which nodes lie between the others, by messages along edges or a flat matrix."""

from typing import Any

import torch
from torch import Tensor, nn

from eqtoolbox.demos.demo import Data, Demo, Entrant, PhysicalLaw, Standing
from eqtoolbox.demos.scores import relative_error
from eqtoolbox.symmetry.actions.permuting import Permute
from eqtoolbox.symmetry.claim import Equivariance
from eqtoolbox.symmetry.equivariance import equivariance_error
from eqtoolbox.symmetry.groups.finite import Symmetric

NODES = 7
RELABEL = Equivariance(Symmetric(NODES), Permute(-2, -1), Permute(-1), name="relabelling")
ROWS = Equivariance(Symmetric(NODES), Permute(-2), Permute(-1), name="rows-alone")


def betweenness(adjacency: Tensor) -> Tensor:
    """Share of shortest paths through each node, (batch, 7, 7) -> (batch, 7), by networkx.

    Raises:
        ImportError: networkx is missing.
    """
    nx = _networkx()
    rows = []
    for matrix in adjacency.round().int().numpy():
        centrality = nx.betweenness_centrality(nx.from_numpy_array(matrix))
        rows.append([centrality[i] for i in range(len(matrix))])
    return torch.tensor(rows, dtype=adjacency.dtype)


def atlas() -> Tensor:
    """The 853 connected graphs of seven nodes, each once, as adjacency matrices (853, 7, 7)."""
    nx = _networkx()
    graphs = [g for g in nx.graph_atlas_g() if len(g) == NODES and nx.is_connected(g)]
    return torch.stack([torch.tensor(nx.to_numpy_array(g), dtype=torch.float32) for g in graphs])


class Flat(nn.Module):
    """A perceptron on the 49 entries of the matrix: it knows nodes by their number."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(NODES**2, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, NODES),
        )

    def forward(self, adjacency: Tensor) -> Tensor:
        out: Tensor = self.layers(adjacency)
        return out


class Messages(nn.Module):
    """Each node adds up what its neighbours say, four times over; it knows nodes by their edges."""

    def __init__(self, width: int = 32, rounds: int = 4) -> None:
        super().__init__()
        self.start = nn.Linear(2, width)
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
        self.heard = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(rounds))
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, adjacency: Tensor) -> Tensor:
        degree = adjacency.sum(-1, keepdim=True) / NODES
        triangles = (adjacency @ adjacency * adjacency).sum(-1, keepdim=True) / NODES**2
        h = nn.functional.silu(self.start(torch.cat([degree, triangles], dim=-1)))
        for own, heard in zip(self.own, self.heard, strict=True):
            h = h + nn.functional.silu(own(h) + adjacency @ heard(h) / 2)
        whole = h.mean(-2, keepdim=True).expand_as(h)
        centrality: Tensor = self.head(torch.cat([h, whole], dim=-1))
        return centrality.squeeze(-1)


def load() -> Data:
    """600 graphs numbered as in the atlas to learn from; 253 in random order to judge by."""
    rng = torch.Generator().manual_seed(0)
    graphs = atlas()
    graphs = graphs[torch.randperm(len(graphs), generator=rng)]
    orders = Symmetric(NODES).sample(len(graphs) - 600, rng)
    mixed = [RELABEL.input_action(g, x) for g, x in zip(orders, graphs[600:], strict=True)]
    train, test = graphs[:600], torch.stack(mixed)
    return Data(train=(train, betweenness(train)), test=(test, betweenness(test)))


def laws(data: Data) -> list[PhysicalLaw]:
    """What made the targets, without any network."""
    graphs = data.test[0][:32].double()
    text = "Betweenness moves with the nodes as they are numbered anew"
    wrong = "With rows exchanged and columns left, it does not"
    return [
        PhysicalLaw(text=text, result=equivariance_error(betweenness, graphs, RELABEL)),
        PhysicalLaw(text=wrong, result=equivariance_error(betweenness, graphs, ROWS), control=True),
    ]


def _networkx() -> Any:
    try:
        import networkx
    except ImportError as error:
        raise ImportError('the graphs need networkx: pip install "eqtoolbox[demos]"') from error
    return networkx


DEMO = Demo(
    name="graphs",
    title="networks to find the nodes between the others in small graphs of the atlas",
    load=load,
    entries={
        "flat": Entrant(network=Flat),
        "augmented": Entrant(network=Flat, augment=RELABEL),
        "messages": Entrant(network=Messages),
    },
    loss=nn.functional.mse_loss,
    score=Standing(name="betweenness error", of=relative_error),
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    steps=1000,
    batch=64,
    anneal=True,
    watched=128,
    laws=laws,
)
