"""Watching: a due optimizer step is caught as a snapshot, and probes measure it."""
