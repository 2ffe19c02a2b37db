"""A caption with its image, once for each word: bright where the model looked when it was about to say it."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from model.attention_maps import attention_maps
from pipeline.distributed import DistInfo
from pipeline.objectives import FlamingoObjective
from pipeline.prompts import Part, encode_prompts, text_ids

TILE = 160
COLUMNS = 6
FONT = 14  # pixels
LINE = FONT + 10
DARKEST = 0.25  # of a pixel where the model does not look


@dataclass(frozen=True)
class WordMaps:
    """Where a model looked for each word of a text.

    Attributes:
        words: pieces of the text as a person reads them.
        maps: float32 ``[words, images, rows, columns]``, sums to 1 for each word over all images.
        pictures: the prompt's images as the model sees them.
    """

    words: list[str]
    maps: np.ndarray
    pictures: list[Image.Image]


def look_at_words(
    objective: FlamingoObjective,
    prompt: list[Part],
    text: str,
    info: DistInfo | None = None,
    dtype: torch.dtype = torch.float32,
) -> WordMaps:
    """Maps of the words of a text after a prompt; tokens that make one word are taken together.

    Args:
        objective: with the model, on the device of `info`.
        prompt: at least one image.
        text: what was said.
        info: the rank.
        dtype: of the model.
    """
    device = (info or DistInfo.one()).device
    encoded = encode_prompts(objective.text, objective.image, [prompt])
    said = text_ids(objective.text, text)
    ids = torch.cat([encoded.input_ids, torch.tensor([said], dtype=torch.long)], dim=1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    found = attention_maps(
        objective.model, encoded.media(device, dtype), ids.to(device), mask.to(device)
    )
    maps = found.mean[0, :, :, 0]  # pictures have one frame
    first = encoded.input_ids.shape[1]
    words, places = _words(objective.text.tokenizer, said)
    looks = [maps[[first + t - 1 for t in tokens]].mean(0) for tokens in places]
    stacked = torch.stack(looks) if looks else maps[:0]
    pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in encoded.pixels]
    return WordMaps(words, stacked.numpy(), pictures)


def draw_words(found: WordMaps, title: str = "", most_columns: int = COLUMNS) -> Image.Image:
    """A tile for each word: the image it looks at most, lit by where it looks; these images in front."""
    best = [int(maps.sum((1, 2)).argmax()) for maps in found.maps]
    shown = sorted(set(best)) or [len(found.pictures) - 1]
    several = len(found.pictures) > 1
    count = len(shown) + len(found.words)
    columns = min(most_columns, count)
    rows = -(-count // columns)
    top = LINE if title else 0
    sheet = Image.new("RGB", (columns * (TILE + 8), top + rows * (TILE + LINE)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)
    if title:
        pen.text((4, 4), _shortened(title, font, sheet.width - 8), fill="black", font=font)
    tiles = [
        (f"image {image + 1}" if several else "the image", _tile(found.pictures[image], None))
        for image in shown
    ]
    for word, maps, image in zip(found.words, found.maps, best, strict=True):
        name = f"{word} (image {image + 1})" if several else word
        tiles.append((name, _tile(found.pictures[image], maps[image])))
    for number, (word, tile) in enumerate(tiles):
        x = number % columns * (TILE + 8) + 4
        y = top + number // columns * (TILE + LINE)
        sheet.paste(tile, (x, y))
        pen.text((x, y + TILE + 3), _shortened(word, font, TILE), fill="black", font=font)
    return sheet


def stack(sheets: list[Image.Image]) -> Image.Image:
    """Pictures one below another."""
    width = max(sheet.width for sheet in sheets)
    whole = Image.new("RGB", (width, sum(sheet.height + 8 for sheet in sheets)), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height + 8
    return whole


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """A text's beginning that is no wider than so many pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _tile(picture: Image.Image, patches: np.ndarray | None) -> Image.Image:
    tile = picture.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC)
    if patches is None or not patches.max():
        return tile
    scaled = Image.fromarray((255 * patches / patches.max()).astype(np.uint8))
    light = np.asarray(scaled.resize((TILE, TILE), Image.Resampling.BICUBIC), np.float32) / 255
    pixels = np.asarray(tile, np.float32)
    # Towards black where the model does not look, so that the colours stay those of the image.
    lit = pixels * (DARKEST + (1 - DARKEST) * light[..., None])
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


def _words(tokenizer: object, ids: list[int]) -> tuple[list[str], list[list[int]]]:
    """(words, places of the tokens of each): a piece that begins with a space begins a word."""
    words: list[str] = []
    places: list[list[int]] = []
    before = ""
    for place in range(len(ids)):
        whole = tokenizer.decode(ids[: place + 1], skip_special_tokens=True)
        piece, before = whole[len(before) :], whole
        if words and not piece[:1].isspace() and piece:
            words[-1] += piece
            places[-1].append(place)
        else:
            words.append(piece.strip())
            places.append([place])
    kept = [(word, tokens) for word, tokens in zip(words, places, strict=True) if word]
    return [word for word, _ in kept], [tokens for _, tokens in kept]
