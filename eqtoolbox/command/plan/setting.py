"""A training to be watched: its size, its ranks, its precision, and what one of its steps takes."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from eqtoolbox.command.plan.network import Network
from eqtoolbox.expect.bounds import Bound
from eqtoolbox.expect.checked import checked
from eqtoolbox.expect.kinds import Count, Natural, Positive

Sharding = Literal["ddp", "fsdp2", "hsdp"]
Precision = Literal["fp32", "bf16"]
Fraction = Annotated[float, Bound("a number above 0, at most 1", lambda x: 0 < x <= 1, whole=True)]
STATES = {  # numbers that an optimizer keeps for each parameter
    "SGD": 0, "momentum": 1, "RMSprop": 1, "Adagrad": 1, "Muon": 1, "Adam": 2, "AdamW": 2,
}  # fmt: skip
Optimizer = Literal["SGD", "momentum", "RMSprop", "Adagrad", "Muon", "Adam", "AdamW"]
VECTOR = 4  # bytes a number of parameters, gradients, states and of the vectors of probes: float32
GIB = 2**30
FORWARD, BACKWARD = 1.0, 2.0  # work, in forwards; a gradient is both
GROUP = 8  # ranks that share a copy under hsdp unless said: those of one machine


@checked
@dataclass(frozen=True, kw_only=True)
class Training:
    """What a user says of a training; parameters, gradients and states are float32 on every rank.

    Args:
        network: parameters, and what one evaluation on a rank's batch saves.
        ranks: processes, each with a device and a batch of its own.
        sharding: ddp, a copy on every rank; fsdp2, a copy over all ranks; hsdp, one over a group.
        group: ranks that share a copy under hsdp; 0: 8, or all if they are fewer.
        precision: of what a step computes in.
        probe_precision: full, float32; as_trained.
        probe_batch: share of a rank's batch that probes measure on.
        optimizer: of which the numbers kept for each parameter count.
        checkpointing: whether blocks keep their inputs only, and compute forward twice.
        memory: of a device, in GiB.
        every: steps between two measurements that are asked for.
        budget: share of training time for all that is measured.
        slower: how many times longer an operation takes in float32 than in bfloat16 (15: 67 and 989
            TFLOPS by the data sheet of an H100; 2 with TF32).

    Raises:
        ValueError: options that do not fit.
    """

    network: Network
    ranks: Count = 1
    sharding: Sharding = "ddp"
    group: Natural = 0
    precision: Precision = "bf16"
    probe_precision: Literal["full", "as_trained"] = "full"
    probe_batch: Fraction = 1.0
    optimizer: Optimizer = "AdamW"
    checkpointing: bool = False
    memory: Positive = 80.0
    every: Count = 100
    budget: Fraction = 0.05
    slower: Positive = 15.0

    def __post_init__(self) -> None:
        if self.group and self.sharding != "hsdp":
            raise ValueError(
                f"group is of hsdp, got group={self.group} under {self.sharding}; leave it out, or "
                'say sharding = "hsdp"'
            )
        if self.sharding == "hsdp" and self.ranks % self.sharers:
            raise ValueError(
                f"ranks must be a multiple of group, got {self.ranks} ranks in groups of "
                f"{self.sharers}"
            )

    @property
    def sharers(self) -> int:
        """G, the ranks that share one copy of the parameters."""
        if self.sharding == "ddp":
            return 1
        return self.ranks if self.sharding == "fsdp2" else self.group or min(GROUP, self.ranks)

    @property
    def shard(self) -> float:
        """s = N / G, the parameters that a rank holds."""
        return self.network.parameters / self.sharers

    @property
    def vector(self) -> float:
        """4 s, the bytes of one vector."""
        return VECTOR * self.shard

    def itemsize(self, *, probe: bool) -> int:
        """Bytes of a number that is computed: 2 in bfloat16, 4 in float32."""
        return 4 if self.precision == "fp32" or (probe and self.probe_precision == "full") else 2

    @property
    def slowdown(self) -> float:
        """How many times longer a probe's operation takes than a step's."""
        return self.slower if self.itemsize(probe=True) > self.itemsize(probe=False) else 1.0

    @property
    def held(self) -> float:
        """(2 + k) 4 s after a step: parameters, gradients, k states; and DDP's buckets, 4 N."""
        buckets = self.sharding == "ddp" and self.ranks > 1
        return (2 + STATES[self.optimizer] + buckets) * self.vector

    @property
    def peak(self) -> float:
        """Bytes at the peak of a step: gradients come as what autograd saved goes.

        held - 4 s + max(4 s, saved + gathered), without what an optimizer allocates meanwhile.
        """
        net = self.network
        numbers = net.kept if self.checkpointing else net.saved
        saved = self.itemsize(probe=False) * numbers + self.gathered(probe=False)
        return self.held - self.vector + max(self.vector, saved)

    def gathered(self, *, probe: bool) -> float:
        """Bytes of the weights that an engine's own forward gathers: this block and the next."""
        return 0.0 if self.sharers == 1 else 2 * self.itemsize(probe=probe) * self.network.block

    @property
    def gradient(self) -> float:
        """Forwards that a gradient takes: 3, or 4 where each block is computed twice."""
        return FORWARD + BACKWARD + FORWARD * self.checkpointing

    def gather(self, itemsize: int) -> float:
        """Bytes that a rank receives as all N numbers are gathered: (G - 1) / G of them."""
        return itemsize * self.network.parameters * (1 - 1 / self.sharers)

    @property
    def reduce(self) -> float:
        """Bytes of a vector's sum over all ranks, in rings.

        Scattered over the G that share it, (G - 1) / G 4 N; then summed over R = ranks / G copies,
        2 (R - 1) / R 4 s.
        """
        copies = self.ranks / self.sharers
        return self.gather(VECTOR) + 2 * (1 - 1 / copies) * self.vector

    def traffic(self, *, probe: bool) -> float:
        """Bytes of a gradient: weights gathered forward and backward, its sum."""
        return 2 * self.gather(self.itemsize(probe=probe)) + self.reduce

    def steps(self, traffic: float) -> float:
        """Bytes in those of a training step; 0 where that has none."""
        whole = self.traffic(probe=False)
        return traffic / whole if whole else 0.0

    def within(self, steps: float) -> int:
        """Every how many steps what takes so many may run within the budget."""
        return max(1, math.ceil(steps / self.budget - 1e-9))
