"""Demos at the command line: training them, showing them, what is said at the end."""
