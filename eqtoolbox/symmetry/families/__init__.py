"""Families of parameter symmetries: one file each, with finite action, generators and charges."""
