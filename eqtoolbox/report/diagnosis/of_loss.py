"""Rows of the table of diseases: losses that ask for what nobody wants."""

from eqtoolbox.report.diagnosis import loop
from eqtoolbox.report.diagnosis.disease import Disease
from eqtoolbox.report.diagnosis.of_data import OUTCOME

FOLLOW = (*OUTCOME, "diverged", "not-finite", "loss-not-finite", "measurements-non-finite",
          "measurements-failed", "errors", "momentum-too-high", "learning-rate-too-high",
          "learning-rate-too-low", "exploding-gradient", "vanishing-gradient", "zero-gradient",
          "dead-layer", "dead-units", "always-clipped", "constant-output", "moving-target",
          "loss-spike", "beyond-edge", "nothing-unusual")  # fmt: skip

OF_LOSS: tuple[Disease, ...] = (
    Disease(
        id="wrong-sign",
        level="alarm",
        symptom=loop.wrong_sign,
        told_from="of targets that the loss makes itself, as of a generator's, it may be meant",
        remedy=(
            "minimise the loss itself: remove the minus before it, or maximize=True",
            "where a player is to raise the loss of another one, this is meant",
        ),
        source="Karpathy 2019, A Recipe for Training Neural Networks",
        explains=("unbounded-loss", *FOLLOW),
    ),
    Disease(
        id="unbounded-loss",
        level="warning",
        symptom=loop.unbounded,
        told_from="a loss of densities falls below zero, but slower and slower",
        remedy=(
            "look at the sign of each term of the loss, above all of a divergence or a penalty",
            "bound what grows: weights, outputs or variances that the loss rewards for their size",
        ),
        source="Kingma & Welling 2014 (1312.6114)",
        explains=FOLLOW,
    ),
    Disease(
        id="broadcast-targets",
        level="alarm",
        symptom=loop.broadcast,
        told_from="targets that are constant are so before they are broadcast",
        remedy=(
            "give both the same shape: model(x).squeeze(-1), or y[:, None]",
            "read the warning of torch about a target size that differs from the input size",
        ),
        source="torch.nn.functional.mse_loss",
        explains=(*OUTCOME, "constant-target", "constant-output", "vanishing-gradient",
                  "learning-rate-too-low", "moving-target"),
    ),
)  # fmt: skip
