"""Families: kinds of parameter symmetries, as mathematics.

A new one is a file here that states its form (and how outputs move, if they do), a line in the
search that proposes it, and a member in `tests/laws/members.py`, which every law picks up.
"""
