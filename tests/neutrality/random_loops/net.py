"""Net: the random model of a case, from a stem, its pieces and a head."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tests.neutrality.random_loops.case import Case
from tests.neutrality.random_loops.piece import PIECES, WIDTH


class Embedding(nn.Module):
    """Pixels above and below zero as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.detach().flatten(1) > 0).long()
        places = x.new_ones(x.shape).cumsum(1) - 1
        return self.table(x + 2 * places).mean(1)


def stem(name: str) -> nn.Module:
    if name == "convolution":
        layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(3, WIDTH))
    if name == "embedding":
        return Embedding()
    return nn.Sequential(nn.Flatten(), nn.Linear(16, WIDTH))


class Net(nn.Module):
    """Returns the output, or its own loss where it holds a criterion and is given targets."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.stem = stem(case.stem)
        self.body = nn.Sequential(*(PIECES[name].make() for name in case.body))
        self.head = nn.Linear(WIDTH, 3)
        self.criterion: nn.Module | None = None

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        output = self.head(self.body(self.stem(x)))
        if y is None:
            return output
        criterion = F.cross_entropy if self.criterion is None else self.criterion
        return {"loss": criterion(output, y), "output": output}
