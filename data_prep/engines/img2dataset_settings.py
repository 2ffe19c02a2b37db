"""Which settings img2dataset can honour as an engine; the others are refused before anything is fetched."""

from importlib.util import find_spec

from data_prep.config import IngestConfig
from data_prep.errors import Problem

_OR_ROSEATE = "or set ingest.download.engine=roseate"


def check_settings(config: IngestConfig) -> list[Problem]:
    """Everything in the config that this engine lacks; empty where it can run it.

    Reads no table and imports no img2dataset.
    """
    problems = []
    if find_spec("img2dataset") is None:
        rule = "the engine's package must be installed"
        remedy = "pip install 'roseate[img2dataset]'"
        problems.append(Problem("ingest.download.engine", "img2dataset", rule, remedy))

    def refuse(key: str, value: object, lacks: str, set_to: str) -> None:
        remedy = f"set ingest.{key}={set_to} {_OR_ROSEATE}"
        problems.append(Problem(f"ingest.{key}", value, f"img2dataset {lacks}", remedy))

    download = config.download
    if download.robots != "ignore":
        refuse("download.robots", download.robots, "does not read robots.txt", "ignore")
    if download.per_host < download.concurrency:
        lacks = "does not count requests by host"
        refuse("download.per_host", download.per_host, lacks, str(download.concurrency))
    if download.nameservers:
        lacks = "asks the system's resolver only"
        refuse("download.nameservers", download.nameservers, lacks, "[]")
    if config.image.mode == "untouched":
        lacks = "does not decode what it stores as fetched"
        refuse("image.mode", config.image.mode, lacks, "keep_ratio")
    if config.decode.processes != 1:
        lacks = "decodes in one thread of its process"
        refuse("decode.processes", config.decode.processes, lacks, "1")
    for name, source in config.sources.items():
        if source.verify == "phash":
            lacks = "compares the hash of whole files only"
            refuse(f"sources.{name}.verify", source.verify, lacks, "none")
    return problems
