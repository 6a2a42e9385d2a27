"""MLflow."""

from pathlib import Path
from typing import Any, ClassVar

from eqtoolbox.sinks.scalars import Scalars

FOLDER = "eqtoolbox"  # of the artifacts
LONGEST = 5000  # letters of a tag


class MlflowSink(Scalars):
    """Logs to the MLflow run that is active now, also after another one was started.

    Findings are tags and an artifact `eqtoolbox/findings.md`; the page lies beside it. MLflow has
    no histograms.

    Args:
        mlflow: the module.
        how: `select`, see `Scalars`.

    Raises:
        ValueError: no run is active.
    """

    hears: ClassVar[bool] = True
    shows: ClassVar[bool] = True

    def __init__(self, mlflow: Any, **how: Any) -> None:
        super().__init__(**how)
        run = mlflow.active_run()
        if run is None:
            raise ValueError("no MLflow run is active: call mlflow.start_run() before attach()")
        self._mlflow, self._run_id = mlflow, run.info.run_id

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(numbers, step=step, synchronous=True, run_id=self._run_id)

    def found(self, step: int, level: str, title: str, text: str) -> None:
        self._tag(f"{level}.{title}", f"{text} (step {step})")

    def conclude(self, level: str, text: str, page: Path | None) -> None:
        self._tag("verdict", level)
        self._mlflow.log_text(text, f"{FOLDER}/findings.md", run_id=self._run_id)
        if page is not None:
            self._mlflow.log_artifact(str(page), FOLDER, run_id=self._run_id)

    def _tag(self, key: str, value: str) -> None:
        client = self._mlflow.MlflowClient()
        client.set_tag(self._run_id, f"eqtoolbox.{key}", value[:LONGEST])
