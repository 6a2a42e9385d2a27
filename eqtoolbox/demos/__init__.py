"""Small real problems that run offline."""
