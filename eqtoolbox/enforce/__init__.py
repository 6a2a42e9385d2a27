"""Enforce: make a model obey a symmetry of its data, exactly where that can be had."""

__all__: list[str] = []
