"""Random training loops, each compared bit by bit with itself under watch.

Run `python -m tests.neutrality.random_loops FIRST LAST` for the cases of these seeds.
"""
