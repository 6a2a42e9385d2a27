"""Replay: a model and its loss as pure functions that leave no trace.

`objective` evaluates them, `isolation` is the scope of it, `replay` notes what there is and puts it
back, `reach` finds what to note, and `thread` keeps other threads out.
"""
