"""Topics: the questions of a report, in the order in which their findings are told."""

from eqtoolbox.report.topic import Topic
from eqtoolbox.report.topics import (
    asymmetry,
    conservation,
    cost,
    curvature,
    equivariance,
    flow,
    gradient,
    health,
    laws,
    learned,
    loss,
    prediction,
    run,
    stability,
    units,
)

TOPICS: tuple[Topic, ...] = (
    run.TOPIC,
    equivariance.TOPIC,
    asymmetry.TOPIC,
    learned.TOPIC,
    laws.TOPIC,
    conservation.TOPIC,
    gradient.TOPIC,
    flow.TOPIC,
    prediction.TOPIC,
    units.TOPIC,
    stability.TOPIC,
    curvature.TOPIC,
    health.TOPIC,
    loss.TOPIC,
    cost.TOPIC,
)
