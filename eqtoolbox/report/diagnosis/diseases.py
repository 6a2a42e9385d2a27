"""The table of diseases, those first that explain others."""

from eqtoolbox.report.diagnosis import data, loop, signal, steps
from eqtoolbox.report.diagnosis.disease import Disease
from eqtoolbox.report.diagnosis.of_data import OF_DATA, OUTCOME

DEAD = ("dead-layer", "dead-units")
LOST = (*OUTCOME, "loss-not-finite", "measurements-non-finite", "measurements-failed", "errors",
        "beyond-edge")  # fmt: skip
REVIVE = (
    "re-initialise these units and lower the learning rate, or warm it up",
    "use LeakyReLU or GELU",
    "check the biases: large negative ones keep units silent",
)
SLOWER = (
    "lower the learning rate by 3 to 10",
    "warm it up over the first few per cent of the run",
)
PLAYBOOK = "Godbole et al. 2023, Tuning Playbook"

DISEASES: tuple[Disease, ...] = (
    Disease(
        id="zero-grad-forgotten",
        level="alarm",
        symptom=loop.zero_grad,
        told_from="accumulation on purpose has fewer steps than backwards",
        remedy=("call optimizer.zero_grad() once in every step, before backward",),
        source="Schoop et al. 2021 (UMLAUT)",
        explains=(*LOST, "another-loss", "another-scale", "learning-rate-too-high",
                  "momentum-too-high", "diverged", "not-finite", *DEAD, "exploding-gradient",
                  "always-clipped", "vanishing-gradient", "constant-output", "loss-spike",
                  "near-units", "duplicate-units"),
    ),
    Disease(
        id="momentum-too-high",
        level="warning",
        symptom=steps.momentum_too_high,
        told_from="a learning rate that is too high swings with momentum 0.9, too",
        remedy=(
            "set momentum to 0.9",
            "or lower the learning rate by the factor 1 - momentum, too",
        ),
        source=PLAYBOOK,
        explains=(*LOST, "learning-rate-too-high", "diverged", "exploding-gradient", "loss-spike"),
    ),
    Disease(
        id="diverged",
        level="alarm",
        symptom=loop.diverged,
        told_from="a loss that is NaN by arithmetic was calm before",
        remedy=(*SLOWER, "clip the gradient's norm at its usual size"),
        source=PLAYBOOK,
        explains=(*LOST, "learning-rate-too-high", "not-finite"),
    ),
    Disease(
        id="not-finite",
        level="alarm",
        symptom=loop.not_finite,
        told_from="a training that diverges has a loss that grows before",
        remedy=(
            "take cross_entropy or BCEWithLogitsLoss of logits instead of a log of probabilities",
            "add an eps inside log, sqrt and divisions, or clamp what they are given",
            "check the batch of that step for NaN; torch.autograd.set_detect_anomaly(True) names "
            "the operation",
        ),
        source="Goodfellow et al. 2016, Deep Learning, 4.1",
        explains=(*LOST, "learning-rate-too-high"),
    ),
    Disease(
        id="softmax-twice",
        level="warning",
        symptom=loop.softmax_twice,
        told_from="log_softmax before cross_entropy changes nothing",
        remedy=("return logits: remove the softmax or sigmoid at the end of the model",),
        source="torch.nn.CrossEntropyLoss",
        explains=OUTCOME,
    ),
    Disease(
        id="training-in-eval-mode",
        level="warning",
        symptom=loop.evaluation_mode,
        told_from="BatchNorm frozen on purpose is in evaluation mode alone, the model is not",
        remedy=("call model.train() before each epoch, and after each evaluation",),
        source="torch.nn.Module.train",
        explains=("not-learning", "no-signal"),
    ),
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
        id="inputs-not-scaled",
        level="warning",
        symptom=data.unscaled,
        told_from="a standardised table with entries outside [-1, 1] is fine",
        remedy=(
            "standardise each column by mean and standard deviation of the training data",
            "divide pixels by 255",
        ),
        source="LeCun et al. 1998, Efficient BackProp",
        explains=(*OUTCOME, "exploding-gradient", "beyond-edge", "learning-rate-too-high"),
    ),
    Disease(
        id="decay-too-strong",
        level="warning",
        symptom=steps.decay_too_strong,
        told_from="a learning rate that is too high does not shrink weights",
        remedy=("divide weight_decay by 10 to 100, and exempt norms and biases",),
        source="Kosson et al. 2023 (2305.17212)",
        explains=(*OUTCOME, "vanishing-gradient", "constant-output", "learning-rate-too-low",
                  "learning-rate-too-high", "beyond-edge", *DEAD),
    ),
    Disease(
        id="no-gradient",
        level="warning",
        symptom=signal.no_gradient,
        told_from="frozen parameters require none, and experts that rest at times move at others",
        remedy=(
            "look for detach(), no_grad() or item() between these layers and the loss",
            "check that forward calls them, and that the loss uses what they give",
            "if it is meant, freeze them: requires_grad_(False)",
        ),
        source="torch.Tensor.detach",
        explains=OUTCOME,
    ),
    Disease(
        id="always-clipped",
        level="warning",
        symptom=steps.always_clipped,
        told_from="a learning rate that is too low leaves the gradient whole",
        remedy=(
            "clip at the 90th percentile of the gradient's norms, so that few steps are clipped",
            "or raise the learning rate instead of relying on the threshold",
        ),
        source=PLAYBOOK,
        explains=("learning-rate-too-low", "not-learning", "no-signal"),
    ),
    Disease(
        id="exploding-gradient",
        level="warning",
        symptom=signal.exploding,
        told_from="a single corrupt batch is one spike of the loss, too",
        remedy=(
            "clip the gradient's norm (torch.nn.utils.clip_grad_norm_) at its 90th percentile",
            "of recurrent networks: use LSTM or GRU, an orthogonal initialisation, or shorter "
            "sequences",
        ),
        source="Pascanu et al. 2013 (1211.5063)",
        explains=(*OUTCOME, "vanishing-gradient", "beyond-edge", "learning-rate-too-high"),
    ),
    Disease(
        id="learning-rate-too-high",
        level="warning",
        symptom=steps.rate_too_high,
        told_from="at the edge of stability the loss falls; by noise few steps raise it",
        remedy=SLOWER,
        source="Cohen et al. 2021 (2103.00065)",
        explains=(*OUTCOME, "beyond-edge", "constant-output", "loss-spike", "vanishing-gradient",
                  "learning-rate-too-low", "exploding-gradient"),
    ),
    Disease(
        id="dead-layer",
        level="alarm",
        symptom=signal.dead_layer,
        told_from="a layer whose gradients vanish still gives something",
        remedy=REVIVE,
        source="Sokar et al. 2023 (2302.12902)",
        explains=(*OUTCOME, "vanishing-gradient", "constant-output", "learning-rate-too-low",
                  "dead-units"),
    ),
    Disease(
        id="dead-units",
        level="warning",
        symptom=signal.dead,
        told_from="a unit that is silent on one batch is not dead",
        remedy=REVIVE,
        source="Sokar et al. 2023 (2302.12902)",
    ),
    Disease(
        id="vanishing-gradient",
        level="warning",
        symptom=signal.vanishing,
        told_from="before a dead layer gradients are exactly 0",
        remedy=(
            "use ReLU or GELU instead of sigmoid or tanh, and Xavier or He initialisation",
            "add residual connections or normalisation (BatchNorm, LayerNorm)",
        ),
        source="Glorot & Bengio 2010",
        explains=(*OUTCOME, "constant-output", "learning-rate-too-low"),
    ),
    Disease(
        id="learning-rate-too-low",
        level="warning",
        symptom=steps.rate_too_low,
        told_from="gradients arrive whole: neither clipped nor lost between the layers",
        remedy=(
            "raise the learning rate by 10 to 100",
            "look for the largest one at which the loss still falls",
        ),
        source=PLAYBOOK,
        explains=OUTCOME,
    ),
    Disease(
        id="collapsed-representation",
        level="alarm",
        symptom=signal.collapsed,
        told_from="where outputs are constant for another reason the loss is bad",
        remedy=(
            "stop the gradient of one branch (detach), and add a predictor to the other",
            "add negatives, or a term that keeps the variance of the outputs",
        ),
        source="Chen & He 2020 (2011.10566)",
        explains=("nothing-unusual",),
    ),
    Disease(
        id="constant-output",
        level="warning",
        symptom=signal.ignored_input,
        told_from="dead layers and vanishing gradients show in units and layers",
        remedy=(
            "check that the model uses its input, and print outputs for two different samples",
            "use a smaller initialisation or normalisation layers",
        ),
        source="Karpathy 2019, A Recipe for Training Neural Networks",
        explains=OUTCOME,
    ),
    Disease(
        id="saturated-attention",
        level="warning",
        symptom=signal.saturated_attention,
        told_from="attention that is sharp in few heads keeps the mean entropy up",
        remedy=(
            "normalise queries and keys (QK-norm), or scale their initialisation down",
            "lower the learning rate, or warm it up",
        ),
        source="Wortsman et al. 2023 (2309.14322)",
    ),
    Disease(
        id="batch-norm-on-tiny-batches",
        level="warning",
        symptom=loop.tiny_batches,
        told_from="small batches without BatchNorm are only noisy",
        remedy=("use GroupNorm or LayerNorm", "or larger batches"),
        source="Wu & He 2018 (1803.08494)",
        explains=OUTCOME,
    ),
    *OF_DATA,
)  # fmt: skip
