"""Reasons: why no loss of a step was caught, and what to do; `how` tells how to give one."""

NO_LOSS = (
    "no loss is known: {how} (outside of torch.compile, where it is compiled), or give criterion= "
    "(a module), or {observed}"
)
NO_BATCH = "no batch is known: call monitor.observe(batch) in each step or give probe_batch"
UNCALLED = (
    "the {kind} that was given as criterion= is not called in the training step: call that very "
    "object, criterion(model(x), ...), or {how}"
)
UNSEEN = (
    "the {kind} that was given as criterion= is called, but no call of the model is seen before "
    "it: call the model itself instead of its forward(), and outside of what torch.compile makes a "
    "program of, or {how}"
)
NOT_ON_OUTPUT = (
    "the criterion was not called on the model's own output{why}: give the loss as a function. "
    "Ready to paste, with your own line in place of output:"
    "\n    loss_fn = monitor.loss(lambda model, x, y: criterion(output(model(x)), y))"
    "\nand call loss_fn(model, x, y) where the loop calls the criterion"
)
COMPILED_SINCE = (
    "the model, or the criterion, was compiled after attach(): losses are caught from the next "
    "step on"
)
IN_TRANSFORM = "the loss runs inside a torch.func transform, where it cannot be caught"
