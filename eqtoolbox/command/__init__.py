"""The command line: what `eqtoolbox` answers in a terminal."""
