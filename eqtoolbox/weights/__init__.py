"""Symmetries of the parameters: found, verified, and what they conserve."""
