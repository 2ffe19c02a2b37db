"""What a test leaves behind for the files that run after it in the same process."""

import os
import sys

import pytest


@pytest.fixture(autouse=True)
def mlflow_as_it_was():
    """Who sends in this process sets MLflow's defaults: its variables, its store and its registry."""
    before = {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")}
    yield
    if mlflow := sys.modules.get("mlflow"):
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    for name in [n for n in os.environ if n.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ |= before
