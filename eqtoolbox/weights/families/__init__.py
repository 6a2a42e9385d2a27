"""Families: kinds of parameter symmetries, as mathematics."""
