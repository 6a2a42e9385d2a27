"""Replay: a model and its loss are evaluated again, and nothing of what they touch stays moved."""
