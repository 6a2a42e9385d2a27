"""Capture: what the optimizer step that goes on leaves to be measured."""
