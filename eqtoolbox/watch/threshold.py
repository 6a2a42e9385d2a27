"""The threshold of gradient descent: which curvature its steps can bear, by its momentum."""

from eqtoolbox.watch.snapshot import ParameterGroup


def threshold(group: ParameterGroup) -> float:
    """c of gradient descent with (heavy-ball or Nesterov) momentum: stable for H < c / eta."""
    momentum = group.momentum
    if group.nesterov:
        return (2 + 2 * momentum) / (1 + 2 * momentum)
    dampening = float(group.options.get("dampening", 0.0)) if momentum else 0.0
    return (2 + 2 * momentum) / (1 - dampening)
