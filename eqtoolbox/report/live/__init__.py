"""Live views: a run while it is written, in the terminal and in the browser."""
