"""Integrations: eqtoolbox inside training frameworks, each imported with its own module."""
