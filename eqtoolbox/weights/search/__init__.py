"""The search: which symmetries a network has, proposed and verified."""
