"""PyTorch Ignite: a monitor that follows an Engine."""

from eqtoolbox.integrations.extra import extra
from eqtoolbox.watch.monitor import Monitor

with extra("ignite", "eqtoolbox.integrations.ignite"):
    from ignite.engine import Engine, Events


def attach(trainer: Engine, monitor: Monitor) -> Monitor:
    """Let a monitor see the batches of `trainer`, and close it when the run is over.

    The monitor has `state_dict` and `load_state_dict`: give it to `ignite.handlers.Checkpoint`
    with model, optimizer and trainer, and attach it with `resume=True` where a run goes on.

    Args:
        trainer: the engine whose process function calls `optimizer.step()`.
        monitor: `eqtoolbox.attach(model, optimizer, ...)`, with the `criterion` module that
            `create_supervised_trainer` was given, or with a `loss_fn(model, batch)`.

    Returns:
        The monitor.

    Example:
        >>> import torch, eqtoolbox as eq
        >>> from ignite.engine import create_supervised_trainer
        >>> model, criterion = torch.nn.Linear(2, 1), torch.nn.MSELoss()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = create_supervised_trainer(model, optimizer, criterion)
        >>> monitor = attach(trainer, eq.attach(model, optimizer, criterion=criterion))
        >>> state = trainer.run([(torch.ones(4, 2), torch.ones(4, 1))], max_epochs=1)
        >>> monitor.step
        1
    """

    def observe(engine: Engine) -> None:
        if monitor.takes_batches:
            monitor.observe(engine.state.batch)

    trainer.add_event_handler(Events.ITERATION_STARTED, observe)
    trainer.add_event_handler(Events.COMPLETED | Events.TERMINATE, lambda _: monitor.close())
    return monitor
