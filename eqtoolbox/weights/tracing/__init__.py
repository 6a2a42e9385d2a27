"""Tracing: what one evaluation does with its parameters, as constraints on exponents."""
