"""Images and texts to what an exported Roseate model takes, as its training had them."""

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import load_image
from transformers.processing_utils import ImagesKwargs, ProcessorMixin

IMAGE = "<image>"


class RoseateImageProcessor(ImageProcessingMixin):
    """Pictures to normalised squares.

    Args:
        size: side of the square.
        image_mean, image_std: per channel of values from 0 to 1.
        fit: ``crop`` (the shorter side fills the square), ``squash`` (both do), ``pad`` (the longer does).
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = ImagesKwargs

    def __init__(self, size=224, image_mean=(0.5,) * 3, image_std=(0.5,) * 3, fit="crop", **kwargs):
        super().__init__(**kwargs)
        self.size, self.fit = size, fit
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def __call__(self, images, return_tensors="pt", **_):
        """Pixels ``[N, 3, S, S]`` of one picture or several (PIL, uint8 arrays ``[H, W, 3]``, paths, URLs)."""
        images = images if isinstance(images, list | tuple) else [images]
        pixels = torch.stack([self.square(image) for image in images])
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.image_mean, self.image_std))
        pixels = pixels.float() * (1 / (255 * std)) - mean / std
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def square(self, image):
        """uint8 ``[3, S, S]``."""
        side = (self.size, self.size)
        image = _picture(image)
        if self.fit != "pad":
            # A JPEG that is not read yet, at a half, a quarter or an eighth from its coefficients.
            shrink = self.size / min(image.size)
            image.draft(None, tuple(int(length * shrink) + 1 for length in image.size))
        image = ImageOps.exif_transpose(_rgb(image))
        width, height = image.size
        if self.fit == "pad":
            scale = self.size / max(image.size)
            inner = tuple(max(1, round(length * scale)) for length in image.size)
            if inner != image.size:
                image = image.resize(inner, Image.Resampling.BICUBIC)
            whole = Image.new("RGB", side, "white")
            whole.paste(image, ((self.size - inner[0]) // 2, (self.size - inner[1]) // 2))
            image = whole
        else:
            box = None
            if self.fit == "crop":
                short = min(width, height)
                left, top = (width - short) / 2, (height - short) / 2
                box = left, top, left + short, top + short
            if image.size != side or box not in (None, (0, 0, *side)):
                image = image.resize(side, Image.Resampling.BICUBIC, box=box)
        return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


class RoseateProcessor(ProcessorMixin):
    """Prompts with images.

    ``<image>`` in a text says where an image stands, ``<|endofchunk|>`` ends an example; a text without a mark
    has its images in front. Prompts are padded on the left.
    """

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images=None, text=None, return_tensors="pt", **_):
        """Tokens, mask and pixels.

        Args:
            images: a picture, pictures of one text, or a list of them for each text.
            text: one or several.
        """
        texts = [text or ""] if text is None or isinstance(text, str) else list(text)
        rows = _by_text(images, len(texts))
        ids = [self._ids(t, len(pictures)) for t, pictures in zip(texts, rows, strict=True)]
        width = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        found = {
            "input_ids": torch.tensor([[pad] * (width - len(row)) + row for row in ids]),
            "attention_mask": torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in ids]
            ),
        }
        most = max(map(len, rows))
        if most:
            size = self.image_processor.size
            pixels = torch.zeros(len(rows), most, 3, size, size)
            for number, pictures in enumerate(rows):
                if pictures:
                    made = self.image_processor(pictures)["pixel_values"]
                    pixels[number, : len(pictures)] = made
            found["pixel_values"] = pixels
        return BatchFeature(found, tensor_type=return_tensors)

    def _ids(self, text, images):
        tokenizer = self.tokenizer
        # Training dropped marks that a text spells, too.
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        marks = text.count(IMAGE)
        if not marks:
            text = IMAGE * images + text
        elif marks != images:
            raise ValueError(f"a text has {marks} marks {IMAGE} for {images} images: {text[:80]!r}")
        begin = tokenizer.bos_token_id
        ids = [tokenizer.eos_token_id if begin is None else begin]
        for number, chunk in enumerate(text.split("<|endofchunk|>")):
            if number:
                ids.append(tokenizer.convert_tokens_to_ids("<|endofchunk|>"))
            for place, piece in enumerate(chunk.split(IMAGE)):
                if place:
                    ids.append(tokenizer.convert_tokens_to_ids(IMAGE))
                found = tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else []
                ids += [token for token in found if token not in special]
        return ids

    def post_process_image_text_to_text(self, rows, skip_special_tokens=True, **kwargs):
        """Texts of whole sequences, prompts and all, for transformers' pipeline."""
        decode = self.tokenizer.batch_decode
        return decode(rows, skip_special_tokens=skip_special_tokens, **kwargs)

    def decode(self, ids, **kwargs):
        """Text up to the first end mark."""
        return self.batch_decode([ids], **kwargs)[0]

    def batch_decode(self, rows, **kwargs):
        """Texts up to their first end marks."""
        tokenizer = self.tokenizer
        ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endofchunk|>")}
        texts = []
        for row in rows:
            row = [int(token) for token in row]
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
            text = tokenizer.decode(row[:end], skip_special_tokens=True)
            texts.append(text.strip())
        return texts


def _by_text(images, count):
    if images is None:
        return [[] for _ in range(count)]
    if not isinstance(images, list | tuple):
        images = [images]
    if any(isinstance(item, list | tuple) for item in images):
        rows = [list(item) if isinstance(item, list | tuple) else [item] for item in images]
    else:
        rows = [list(images)] if count == 1 else [[item] for item in images]
    if len(rows) != count:
        raise ValueError(f"{len(rows)} lists of images for {count} texts")
    return rows


def _picture(image):
    if torch.is_tensor(image):
        image = image.cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
            raise ValueError(
                f"an array as an image is uint8 [height, width, 3], not {image.dtype} {list(image.shape)}"
            )
        return Image.fromarray(image)
    if isinstance(image, str):
        # By our own hand, and not by load_image: a JPEG may still be read smaller.
        if not image.startswith(("http://", "https://")):
            return Image.open(image)
        return load_image(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image is a picture of PIL, an array, a path or a URL, not {image!r}")
    return image


def _rgb(image):
    """Without alpha, on white; its orientation is still in its info."""
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
