"""MLflow."""

from typing import Any

from eqtoolbox.sinks.scalars import Scalars


class MlflowSink(Scalars):
    """Logs to the MLflow run that is active now, also after another one was started.

    Args:
        mlflow: the module.

    Raises:
        ValueError: no run is active.
    """

    def __init__(self, mlflow: Any) -> None:
        super().__init__()
        run = mlflow.active_run()
        if run is None:
            raise ValueError("no MLflow run is active: call mlflow.start_run() before attach()")
        self._mlflow, self._run_id = mlflow, run.info.run_id

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(numbers, step=step, synchronous=True, run_id=self._run_id)
