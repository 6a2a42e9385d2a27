"""Attach: where a loop, a configuration and all that it names meet."""

from eqtoolbox.moved import names

__getattr__ = names(__name__, {"attach": "eqtoolbox.attach.attach"})
