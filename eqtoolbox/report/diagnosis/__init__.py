"""Diagnosis: which diseases a run shows, from its records joined, behind the question if it learned."""
