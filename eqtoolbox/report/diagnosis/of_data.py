"""The last rows of the table of diseases: those of the data, and those that are left."""

from eqtoolbox.report.diagnosis import data, decaying, loop
from eqtoolbox.report.diagnosis.disease import Disease

OUTCOME = ("not-learning", "no-signal", "far-above-guess", "loss-rising")

OF_DATA: tuple[Disease, ...] = (
    Disease(
        id="batch-norm-on-tiny-batches",
        level="warning",
        symptom=loop.tiny_batches,
        told_from="small batches without BatchNorm are only noisy",
        remedy=("use GroupNorm or LayerNorm", "or larger batches"),
        source="Wu & He 2018 (1803.08494)",
        explains=OUTCOME,
    ),
    Disease(
        id="overfit",
        level="warning",
        symptom=data.overfit,
        told_from="without a held-out loss this cannot be seen",
        remedy=(
            "stop at the smallest held-out loss",
            "augment the data, get more of them, or regularise: weight decay, a smaller network",
        ),
        source="Prechelt 1998, Early Stopping",
    ),
    Disease(
        id="loss-spike",
        level="warning",
        symptom=data.spike,
        told_from="noise of the batches is of the scatter's size, hard samples give a tail of many "
        "high losses, and long steps throw it at once",
        remedy=("look at the batch of that step: labels, scale, NaN", "clip the gradient's norm"),
        source="Takase et al. 2023 (2312.16903)",
        explains=("not-learning", "loss-rising"),
    ),
    Disease(
        id="loss-not-finite-at-times",
        level="warning",
        symptom=loop.at_times,
        told_from="a loss that is lost stays NaN",
        remedy=("look at these batches: no target that counts, an empty sample, NaN among inputs",),
        source="Goodfellow et al. 2016, Deep Learning, 4.1",
    ),
    Disease(
        id="moving-target",
        level="note",
        symptom=data.moving_target,
        told_from="halves of a batch do not agree where labels are noise, and long steps raise it",
        remedy=(
            "judge such a training by a measure on data that stay: of two players neither loss is "
            "one",
            "without a second player or a target network: look for what undoes the steps, such as "
            "weights that are written back",
        ),
        source="Goodfellow et al. 2014 (1406.2661)",
        explains=OUTCOME,
    ),
    Disease(
        id="dropout-too-strong",
        level="warning",
        symptom=data.dropped,
        told_from="labels that are noise need no dropout to hide the signal",
        remedy=(
            "lower the rate to 0.1 to 0.5: p is the share that is dropped, not that is kept",
            "if the loss stays without it, too, check that inputs and labels belong together",
        ),
        source="Srivastava et al. 2014, Dropout",
        explains=OUTCOME,
    ),
    Disease(
        id="far-above-guess",
        level="warning",
        symptom=data.far_above_guess,
        told_from="without a signal the loss rests at that of a constant output, not above it",
        remedy=(
            "standardise the targets: subtract their mean and divide by their standard deviation",
            "train on, or raise the learning rate, if the loss still falls",
        ),
        source="LeCun et al. 1998, Efficient BackProp",
        explains=("not-learning",),
    ),
    Disease(
        id="no-signal",
        level="warning",
        symptom=data.no_signal,
        told_from="steps are long enough and gradients arrive",
        remedy=(
            "check that inputs and labels belong together: print some pairs",
            "train on one batch alone: if that works, the labels do not follow from the inputs",
        ),
        source="McCandlish et al. 2018 (1812.06162)",
        explains=("not-learning",),
    ),
    Disease(
        id="not-learning",
        level="warning",
        symptom=data.not_learning,
        told_from="no rule knows why",
        remedy=(
            "train on one batch of a few samples: if that fails, model or loss is at fault",
            "try learning rates 10 times higher and lower",
            "check that inputs and labels belong together",
        ),
        source="Karpathy 2019, A Recipe for Training Neural Networks",
        explains=("loss-rising",),
    ),
    Disease(
        id="norms-grow",
        level="note",
        symptom=decaying.norms_grow,
        told_from="growth of other weights is normal; only a symmetry tells that it is idle",
        remedy=("add weight decay, or normalise these weights",),
        source="Kosson et al. 2023 (2305.17212)",
    ),
)
