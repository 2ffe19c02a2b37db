"""Whether the engine of an ingest can do what its other settings ask for."""

from data_prep.config import IngestConfig
from data_prep.engines.img2dataset_settings import check_settings
from data_prep.errors import Problem


def engine_problems(config: IngestConfig) -> list[Problem]:
    """Every setting that the chosen engine cannot honour; our own honours all."""
    return check_settings(config) if config.download.engine == "img2dataset" else []
