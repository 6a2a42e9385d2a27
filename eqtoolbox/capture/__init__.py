"""Capture: the losses, batches and weights of a training loop, caught without editing the loop."""
