"""The rows of the table of diseases whose cause is in what a batch holds."""

from eqtoolbox.report.diagnosis import batches, signal
from eqtoolbox.report.diagnosis.disease import Disease
from eqtoolbox.report.diagnosis.of_data import OUTCOME

DEAD = ("dead-layer", "dead-units")

OF_BATCHES: tuple[Disease, ...] = (
    Disease(
        id="constant-input",
        level="alarm",
        symptom=signal.constant_input,
        told_from="a dead layer is given inputs that vary",
        remedy=("print one batch: the pipeline gives the same sample, or zeros, again and again",),
        source="Karpathy 2019, A Recipe for Training Neural Networks",
        explains=(*OUTCOME, "constant-output", "vanishing-gradient", "inputs-not-scaled",
                  *DEAD, "learning-rate-too-low"),
    ),
    Disease(
        id="constant-target",
        level="warning",
        symptom=batches.constant_target,
        told_from="zeros or ones that the loss makes itself are no labels",
        remedy=(
            "print the targets of a few batches: a wrong column, or a sorted data set",
            "of classes so rare that no measured batch held one: draw them more often",
        ),
        source="Karpathy 2019, A Recipe for Training Neural Networks",
        explains=(*OUTCOME, "constant-output", "vanishing-gradient", "learning-rate-too-low"),
    ),
    Disease(
        id="inputs-not-scaled",
        level="warning",
        symptom=batches.unscaled,
        told_from="a standardised table with entries outside [-1, 1] is fine",
        remedy=(
            "standardise each column by mean and standard deviation of the training data",
            "divide pixels by 255",
        ),
        source="LeCun et al. 1998, Efficient BackProp",
        explains=(*OUTCOME, *DEAD, "exploding-gradient", "beyond-edge", "learning-rate-too-high",
                  "constant-output", "vanishing-gradient", "learning-rate-too-low"),
    ),
    Disease(
        id="targets-not-scaled",
        level="warning",
        symptom=batches.unscaled_targets,
        told_from="outputs that have reached the mean of large targets need no scale",
        remedy=(
            "standardise the targets by mean and standard deviation of the training data, and "
            "undo that for predictions",
            "or set the bias of the last layer to their mean, and raise the learning rate",
        ),
        source="LeCun et al. 1998, Efficient BackProp",
        explains=(*OUTCOME, *DEAD, "constant-output", "vanishing-gradient", "beyond-edge",
                  "learning-rate-too-high", "moving-target"),
    ),
)  # fmt: skip
