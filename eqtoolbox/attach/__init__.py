"""Attach: where a loop, a configuration and all that it names meet."""
