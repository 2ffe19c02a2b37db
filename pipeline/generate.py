"""Captions of image files with the newest checkpoint of a run."""

from pathlib import Path

from data_prep.errors import ConfigError, Problem
from pipeline.config import RunConfig
from pipeline.data.batch import collate
from pipeline.data.dataset import RawSample, UnusableSampleError
from pipeline.data.samples import decode_sample
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
        raw = RawSample(str(file), [file.read_bytes(), ""])
        (encoded,) = objective.text.encode([raw.parts])
        try:
            sample = decode_sample(raw, encoded, objective.image, -1, seed=None)
        except UnusableSampleError as error:
            rule = f"can be decoded: {error.reason}"
            raise ConfigError([Problem("IMAGE", str(file), rule, "give a PNG or JPEG")]) from None
        batch = collate([sample], objective.image, pad_id=objective.text.pad_id)
        captions[str(file)] = caption(objective, batch, config.evaluation, zero_image=False)[0]
    return captions
