"""How a run reads its data: tokens and pixels, by objective, without loading any weights."""

from contextlib import suppress
from pathlib import Path

from model.language import load_tokenizer
from model.tokens import END_OF_CHUNK, IMAGE_TOKEN, TokenIds
from pipeline.config import RunConfig
from pipeline.data.dataset import UnusableSampleError
from pipeline.data.features import tower_folder
from pipeline.data.image import ImageFormat
from pipeline.data.sources import open_sources
from pipeline.data.text import TextFormat
from pipeline.data.tokenizer import train_tokenizer

VOCAB_SIZE = 512
TOKENIZER_TEXTS = 2000
HALF = (0.5, 0.5, 0.5)


def flamingo_text(config: RunConfig) -> TextFormat:
    """Pairs and documents for the language model of `model.language.path`.

    Raises:
        ValueError: there is no tokenizer.
    """
    tokenizer = load_tokenizer(config.model.language.path)
    token_ids = TokenIds(
        media={"image": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)},
        text=(tokenizer.convert_tokens_to_ids(END_OF_CHUNK),),
    )
    return TextFormat(tokenizer, token_ids, config.data.max_text_tokens, config.data.max_images)


def flamingo_image(config: RunConfig, vision) -> ImageFormat:
    """Images for an encoder, a `model.vision_encoder.VisionEncoder` with or without weights."""
    return ImageFormat(vision.image_size, tuple(vision.mean), tuple(vision.std), config.data.image)


def flamingo_features(config: RunConfig, identity: str, image: ImageFormat) -> Path | None:
    """Where the features of training images are, None where they are not to be used.

    Args:
        identity: of the image tower, `model.identity.frozen_identity`.
        image: what the tower takes.
    """
    folder = config.data.features
    return None if folder is None else tower_folder(folder, identity, image)


def tower_text(config: RunConfig) -> TextFormat:
    """Captions alone, by a tokenizer trained on the first of every source; the same for both towers."""
    texts = []
    for dataset in open_sources(config.data).values():
        for number in range(min(len(dataset), TOKENIZER_TEXTS)):
            with suppress(UnusableSampleError):
                texts.append(dataset.read(number).text)
    return TextFormat(train_tokenizer(texts, VOCAB_SIZE), None, config.data.max_text_tokens)


def tower_image(config: RunConfig) -> ImageFormat:
    """Images for the small tower of section `tower`."""
    return ImageFormat(config.tower.image_size, HALF, HALF, config.data.image)
