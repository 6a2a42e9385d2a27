"""Rows of the table of diseases: training loops that undo what they do."""

from eqtoolbox.report.diagnosis import undone
from eqtoolbox.report.diagnosis.disease import Disease
from eqtoolbox.report.diagnosis.of_data import OUTCOME

OF_LOOP: tuple[Disease, ...] = (
    Disease(
        id="weights-written-back",
        level="warning",
        symptom=undone.written_back,
        told_from="steps of length 0, and those that a line search refuses, undo nothing",
        remedy=(
            "look for load_state_dict() or copy_() in the loop: after an evaluation of averaged "
            "weights restore those that it began with, not an older copy",
            "load the best weights once, after the training, and not at each evaluation",
            "where each restart is meant, as of folds or tasks, attach to each of them",
        ),
        source="torch.nn.Module.load_state_dict",
        explains=(*OUTCOME, "moving-target", "learning-rate-too-low", "momentum-too-high",
                  "data-in-order", "constant-output", "vanishing-gradient", "loss-spike",
                  "beyond-edge", "overfit", "nothing-unusual"),
    ),
)  # fmt: skip
