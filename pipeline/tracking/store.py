"""Records of a spool into MLflow. Whatever is applied twice is there once.

Points of curves, parameters, tags and datasets are such by themselves: MLflow's store knows a point by its key,
step, time and value. Files and tables are written whole. Runs, models and versions are looked for by a tag with
their own key before they are made.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.database import make_database
from pipeline.tracking.parent import one_at_a_time
from pipeline.tracking.spool import FILES, SenderState

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

KEY = "roseate.key"
# Without it MLflow's page opens an experiment as one of prompts and traces.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
MOST_POINTS = 1000  # that MLflow takes in a request
MOST_PARAMS = 100
MOST_CHARACTERS = 6000  # of a parameter


class Store:
    """One tracking URI.

    Args:
        uri: of MLflow.
        folder: of the spool.
        state: of the sender; gets the ids of what is made.
    """

    def __init__(self, uri: str, folder: Path, state: SenderState) -> None:
        import mlflow

        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        self._entities = mlflow.entities
        self._client = _connect(uri)
        self._uri, self._folder, self.state = uri, folder, state
        self._events: list[dict] = []

    def replay(self, record: dict) -> None:
        """Take in a record that was sent before: what later ones build on."""
        if record["kind"] == "run" and not record.get("goes_on"):
            self._events = []
        elif record["kind"] == "event":
            self._events.append(record["row"])

    def has_run(self) -> bool:
        """Whether the run is still there: not deleted, and the database not another one.

        Raises:
            mlflow.exceptions.MlflowException, OSError: the store does not answer.
        """
        with _passing("RESOURCE_DOES_NOT_EXIST"):
            return self._client.get_run(self.state.run_id).info.lifecycle_stage == "active"
        return False

    def apply(self, record: dict) -> None:
        """Send one record.

        Raises:
            mlflow.exceptions.MlflowException, OSError: and whatever else a client comes up with.
        """
        getattr(self, f"_{record['kind']}")(record)

    def points(self, records: list[dict]) -> None:
        """Send records of kind `metrics` together."""
        metric = self._entities.Metric
        points = [metric(k, v, r["t"], r["step"]) for r in records for k, v in r["values"].items()]
        for start in range(0, len(points), MOST_POINTS):
            self._client.log_batch(self.state.run_id, metrics=points[start : start + MOST_POINTS])

    def _metrics(self, record: dict) -> None:
        self.points([record])

    def _run(self, record: dict) -> None:
        state = self.state
        if not record.get("goes_on"):
            self._events = []
        known = state.run_id if record.get("goes_on") else record.get("run_id")
        experiment = self._reopen(known) if known else None
        if experiment is None:
            self._begin(record)
        else:
            state.run_id, state.experiment_id = known, experiment
        state.key = record["key"]
        if self._uri.startswith("http"):
            # Its page opens on prompts and traces without this.
            view = "?workflowType=machine_learning"
            place = f"experiments/{state.experiment_id}/runs/{state.run_id}{view}"
            state.url = f"{_without_user(self._uri)}/#/{place}"

    def _reopen(self, run_id: str) -> str | None:
        """Its experiment; None where the store has no such run any more, or another store it is."""
        with _passing("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            self._client.update_run(run_id, status="RUNNING")
            return self._client.get_run(run_id).info.experiment_id
        return None

    def _begin(self, record: dict) -> None:
        experiment = self._experiment(record["experiment"], record["artifacts"])
        tags = dict(record["tags"])
        if parent := record.get("parent"):
            tags["mlflow.parentRunId"] = parent.get("run_id") or self._parent(
                experiment, parent, record["t"]
            )
        run = self._named_run(experiment, record["key"], record["name"], tags, record["t"])
        self.state.run_id, self.state.experiment_id = run.info.run_id, experiment

    def _experiment(self, title: str, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(title)
        if found is None:
            # A server keeps artifacts where it says; beside a database file we say it.
            location = None if self._uri.startswith("http") else artifacts
            with _passing("RESOURCE_ALREADY_EXISTS"):
                return self._client.create_experiment(title, location, tags=EXPERIMENT_TAGS)
            found = self._client.get_experiment_by_name(title)  # of another run, just now
        return found.experiment_id

    def _parent(self, experiment: str, parent: dict, began: int) -> str:
        with one_at_a_time(parent):
            run = self._named_run(experiment, parent["key"], parent["name"], {}, began)
            if run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id)
        return run.info.run_id

    def _named_run(self, experiment: str, key: str, name: str, tags: dict, began: int) -> "Run":
        found = self._client.search_runs([experiment], f"tags.`{KEY}` = '{key}'")
        if found:
            return found[0]
        tags = tags | {KEY: key}
        return self._client.create_run(experiment, start_time=began, run_name=name, tags=tags)

    def _params(self, record: dict) -> None:
        param = self._entities.Param
        rows = [param(k, str(v)[:MOST_CHARACTERS]) for k, v in record["values"].items()]
        for start in range(0, len(rows), MOST_PARAMS):
            self._client.log_batch(self.state.run_id, params=rows[start : start + MOST_PARAMS])

    def _tags(self, record: dict) -> None:
        tag = self._entities.RunTag
        rows = [tag(k, str(v)) for k, v in record["values"].items()]
        self._client.log_batch(self.state.run_id, tags=rows)

    def _file(self, record: dict) -> None:
        """A file under its own name, in a folder of the run's artifacts."""
        kept = self._folder / FILES / record["kept"]
        if not kept.exists():
            return  # sent, and the sender was killed before it could say so
        named = kept.with_name(f"{kept.name}.d") / record["name"]
        named.parent.mkdir(exist_ok=True)
        try:
            if not named.exists():
                named.hardlink_to(kept)
            self._client.log_artifact(self.state.run_id, str(named), record["folder"])
        finally:
            named.unlink(missing_ok=True)
            named.parent.rmdir()

    def _table(self, record: dict) -> None:
        """As MLflow's own `log_table` leaves it, whole."""
        self._file(record)
        path = f"{record['folder']}/{record['name']}" if record["folder"] else record["name"]
        self._mark_table(path)

    def _event(self, record: dict) -> None:
        if record["row"] not in self._events:
            self._events.append(record["row"])
        row = record["row"]
        point = self._entities.Metric(
            f"events/{row['kind']}", row["number"], record["t"], row["step"]
        )
        self._client.log_batch(self.state.run_id, metrics=[point])
        columns = list(row)
        table = {"columns": columns, "data": [[r[c] for c in columns] for r in self._events]}
        self._client.log_text(self.state.run_id, json.dumps(table), "events.json")
        self._mark_table("events.json")

    def _mark_table(self, path: str) -> None:
        """Tell MLflow's page that a file is a table."""
        name = "mlflow.loggedArtifacts"
        tags = self._client.get_run(self.state.run_id).data.tags
        known = json.loads(tags.get(name, "[]"))
        mark = {"path": path, "type": "table"}
        if mark not in known:
            self._client.set_tag(self.state.run_id, name, json.dumps([*known, mark]))

    def _dataset(self, record: dict) -> None:
        entities = self._entities
        dataset = entities.Dataset(
            name=record["name"],
            digest=record["digest"],
            source_type=record["source_type"],
            source=json.dumps({"uri": record["source"]}),
        )
        tag = entities.InputTag("mlflow.data.context", record["context"])
        self._client.log_inputs(self.state.run_id, [entities.DatasetInput(dataset, [tag])])

    def _checkpoint(self, record: dict) -> None:
        """A checkpoint as a model of the run, linked by its URL; nothing is uploaded."""
        state = self.state
        model = self._model(record["key"])
        if model is None:
            model = self._client.create_logged_model(
                state.experiment_id,
                name=record["name"],
                source_run_id=state.run_id,
                tags={KEY: record["key"], "roseate.url": record["url"]},
                params={"step": str(record["step"])},
                model_type="flamingo",
            )
        self._client.finalize_logged_model(model.model_id, "READY")
        # Without this MLflow's page of the run does not list it.
        outputs = self._client.get_run(state.run_id).outputs
        if model.model_id not in {output.model_id for output in outputs.model_outputs}:
            output = self._entities.LoggedModelOutput(model.model_id, record["step"])
            self._client.log_outputs(state.run_id, [output])
        if record["values"]:
            metric = self._entities.Metric
            points = [
                metric(k, v, record["t"], record["step"], model_id=model.model_id)
                for k, v in record["values"].items()
            ]
            self._client.log_batch(state.run_id, metrics=points)

    def _model(self, key: str) -> object | None:
        found = self._client.search_logged_models(
            [self.state.experiment_id], filter_string=f"tags.`{KEY}` = '{key}'"
        )
        return found[0] if found else None

    def _register(self, record: dict) -> None:
        """A version of a registered model with an alias, for the checkpoint of a key."""
        name, client = record["name"], self._client
        with _passing("RESOURCE_ALREADY_EXISTS"):
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}'")
        version = next((v for v in versions if v.tags.get(KEY) == record["key"]), None)
        if version is None:
            model = self._model(record["key"])
            version = client.create_model_version(
                name,
                source=f"models:/{model.model_id}",
                run_id=self.state.run_id,
                model_id=model.model_id,
                tags={KEY: record["key"], "roseate.url": record["url"]},
                await_creation_for=0,
            )
        client.set_registered_model_alias(name, record["alias"], version.version)

    def _end(self, record: dict) -> None:
        self._client.set_terminated(self.state.run_id, record["status"], record["t"])


def get_ready(uri: str) -> None:
    """What takes seconds and needs no run: MLflow's import and the tables of a new database.

    What goes wrong here goes wrong again with the first record, which says so.
    """
    with suppress(Exception):
        client = _connect(uri)
        if not uri.startswith("http"):
            client.search_experiments(max_results=1)


def _connect(uri: str) -> "MlflowClient":
    from mlflow.tracking import MlflowClient

    make_database(uri)
    return MlflowClient(uri, uri)


@contextmanager
def _passing(*codes: str) -> Iterator[None]:
    """Pass over the exceptions of MLflow with these codes."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise


def _without_user(uri: str) -> str:
    scheme, _, rest = uri.rstrip("/").partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
