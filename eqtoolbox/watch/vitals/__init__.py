"""Vital signs: what a due step holds anyway, and one or two passes more, said in a few numbers."""
