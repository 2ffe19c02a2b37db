"""Likeness of images and texts by a model's contrastive head."""

from collections.abc import Sequence

import numpy as np

from model.padding import pad_right
from pipeline.evaluation.asker import Asker
from pipeline.evaluation.layouts.record import ImageSource
from pipeline.prompts import encode_prompts


def similarities(asker: Asker, images: Sequence[ImageSource], texts: Sequence[str]) -> np.ndarray:
    """Cosines ``[I, T]`` of images and texts; every rank must call it."""
    return image_vectors(asker, images) @ text_vectors(asker, texts).T


def image_vectors(asker: Asker, images: Sequence[ImageSource]) -> np.ndarray:
    """Unit vectors ``[I, D]``."""

    def work(part: Sequence[ImageSource]) -> list[np.ndarray]:
        prompts = encode_prompts(asker.text, asker.image, [[i.open()] for i in part])
        media = prompts.media(asker.info.device, asker.dtype)
        return [*asker.model.media_vectors(media).float().cpu().numpy()]

    return np.stack(asker.each(images, work, "images"))


def text_vectors(asker: Asker, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors ``[T, D]``, of the pairs that the texts are in in training, their images hidden."""

    def work(part: Sequence[str]) -> list[np.ndarray]:
        encoded = asker.text.encode([[b"", text] for text in part])
        ids, mask = pad_right([one.ids for one in encoded], asker.text.pad_id)
        device = asker.info.device
        found = asker.model.text_vectors(ids.to(device), mask.to(device))
        return [*found.float().cpu().numpy()]

    return np.stack(asker.each(texts, work, "texts"))
