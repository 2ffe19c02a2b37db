"""Where curves, parameters and pictures go: one small protocol, MLflow behind it, nothing on other ranks."""

import time
from pathlib import Path
from typing import Protocol

from pipeline.config import RunConfig, flatten

# Without it MLflow's page opens an experiment as one of prompts and traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


class Tracker(Protocol):
    """What the loop needs of a tracker. `step` is always the optimizer step."""

    run_id: str | None

    def metrics(self, values: dict[str, float], step: int) -> None: ...

    def picture(self, image: object, name: str) -> None: ...

    def table(self, rows: dict[str, list], name: str) -> None: ...

    def file(self, path: Path) -> None: ...

    def end(self, status: str = "FINISHED") -> None: ...


class NullTracker:
    """Keeps nothing: for all ranks but the first, and where tracking.uri is empty."""

    run_id = None

    def metrics(self, values, step):
        pass

    def picture(self, image, name):
        pass

    def table(self, rows, name):
        pass

    def file(self, path):
        pass

    def end(self, status="FINISHED"):
        pass


class MlflowTracker:
    """One MLflow run; with `run_id` it goes on in a run that exists.

    Args:
        config: its dotted names become the run's parameters.
        run_id: of the run to go on in, or None for a new one.
    """

    def __init__(self, config: RunConfig, run_id: str | None = None):
        import mlflow  # slow: only the main rank needs it
        from mlflow.tracking import MlflowClient

        self._mlflow = mlflow
        self._client = MlflowClient(config.tracking.uri)
        if run_id is None:
            name = config.tracking.experiment
            experiment = self._client.get_experiment_by_name(name)
            location = (Path(config.root) / "mlartifacts").absolute().as_uri()
            found = (
                experiment.experiment_id
                if experiment
                else self._client.create_experiment(
                    name, artifact_location=location, tags=EXPERIMENT_TAGS
                )
            )
            run_id = self._client.create_run(found, run_name=config.name).info.run_id
            params = [mlflow.entities.Param(k, str(v)[:6000]) for k, v in flatten(config).items()]
            for start in range(0, len(params), 100):
                self._client.log_batch(run_id, params=params[start : start + 100])
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.run_id = run_id

    def metrics(self, values, step):
        now = int(time.time() * 1000)
        points = [self._mlflow.entities.Metric(k, float(v), now, step) for k, v in values.items()]
        self._client.log_batch(self.run_id, metrics=points)

    def picture(self, image, name):
        self._client.log_image(self.run_id, image, artifact_file=name)

    def table(self, rows, name):
        self._client.log_table(self.run_id, rows, name)

    def file(self, path):
        self._client.log_artifact(self.run_id, str(path))

    def end(self, status="FINISHED"):
        self._client.set_terminated(self.run_id, status)


def open_tracker(config: RunConfig, *, is_main: bool, run_id: str | None = None) -> Tracker:
    if not is_main or not config.tracking.uri:
        return NullTracker()
    if config.tracking.uri.startswith("sqlite:///"):
        Path(config.tracking.uri.removeprefix("sqlite:///")).parent.mkdir(
            parents=True, exist_ok=True
        )
    return MlflowTracker(config, run_id)
