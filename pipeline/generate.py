"""Captions of image files with the newest checkpoint of a run."""

from pathlib import Path

from PIL import UnidentifiedImageError

from data_prep.errors import ConfigError, Problem
from pipeline.config import RunConfig
from pipeline.data.batch import collate
from pipeline.data.shards import RawSample
from pipeline.evaluate import caption, load_run


def generate(config: RunConfig, files: list[Path]) -> dict[str, str]:
    """File -> caption.

    Raises:
        ConfigError: naming every file that is missing or is no image, or a run without checkpoint.
    """
    problems = [
        Problem("IMAGE", str(f), "is an image file", "correct the path")
        for f in files
        if not f.is_file()
    ]
    if problems or not files:
        raise ConfigError(problems or [Problem("IMAGE", None, "at least one file", "name one")])
    objective, _ = load_run(config)
    captions = {}
    for file in files:
        try:
            batch = collate(
                [RawSample(file.read_bytes(), "", str(file))], objective.text, objective.image
            )
        except (UnidentifiedImageError, OSError) as error:
            raise ConfigError(
                [Problem("IMAGE", str(file), f"can be decoded: {error}", "give a PNG or JPEG")]
            ) from None
        captions[str(file)] = caption(objective, batch, config.evaluation, zero_image=False)[0]
    return captions
