"""Diagnosis: which diseases a run shows, behind the question whether it learned."""
