"""Charges: what the symmetries of parameters conserve, for thousands at once."""
