"""The datasets that a run names: those it trains on, and what is held out from them."""

from pathlib import Path

from data_prep.errors import ConfigError, Problem
from pipeline.data.config import DataConfig
from pipeline.data.dataset import Dataset
from pipeline.data.remote import RemoteShards


def open_sources(config: DataConfig, *, held_out: bool = False) -> dict[str, Dataset]:
    """The datasets of training by name, or of what is held out from it.

    Raises:
        ConfigError: with the problems of all of them.
    """
    remote = RemoteShards(config.remote.read, Path(config.remote.cache), config.remote.cache_bytes)
    sources, fraction, section = config.sources, config.held_out_fraction, "data.sources."
    if held_out and config.held_out is not None:
        sources, fraction, section = {"held_out": config.held_out}, 0.0, "data."
    elif held_out and not fraction:
        rule = "names a dataset, or data.held_out_fraction is above 0"
        raise ConfigError([Problem("data.held_out", None, rule, "set one of the two")])
    datasets, problems = {}, []
    for name, source in sources.items():
        try:
            datasets[name] = Dataset(
                source.path,
                f"{section}{name}",
                name=name,
                bitmaps=source.bitmaps,
                held_out_fraction=fraction,
                held_out=held_out,
                remote=remote,
            )
        except ConfigError as error:
            problems += error.problems
    if not sources:
        problems.append(
            Problem("data.sources", {}, "names at least one dataset", "add data.sources.NAME.path")
        )
    if problems:
        raise ConfigError(problems)
    return datasets
