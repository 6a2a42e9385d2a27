"""Probes: what is measured of a step."""
