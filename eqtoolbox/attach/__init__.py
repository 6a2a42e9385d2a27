"""Attach: where a loop, a configuration and all that it names meet."""

from eqtoolbox.attach.attach import attach

__all__ = ["attach"]
