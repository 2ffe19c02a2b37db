"""Trained models of several kinds, and what this project itself computes with them."""

import io
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from model.build import assemble
from model.config import LossConfig
from model.language import load_language
from model.vision import load_vision
from pipeline.formats import flamingo_image
from pipeline.prompts import encode_prompts, place_images
from pipeline.trained import Trained, open_trained

TEXTS = ["", "two small", "<image>a red star<|endofchunk|><image>two"]


def picture(kind="PNG", size=(50, 40), mode="RGB") -> bytes:
    channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
    noise = np.random.default_rng().integers(0, 256, (*size[::-1], channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise.squeeze(), mode).save(buffer, kind)
    return buffer.getvalue()


def pictures() -> list[list[bytes]]:
    """One list for each of TEXTS."""
    return [
        [picture()],
        [picture("JPEG", (300, 200))],
        [picture(), picture("PNG", (30, 90), "RGBA")],
    ]


def open_gates(trained: Trained) -> Trained:
    """So that images and experts change what is said."""
    for block in trained.objective.model.gated_blocks:
        block.attn_gate.data.fill_(2.0)
        block.ff_gate.data.fill_(1.0)
    return trained


def opened(root: Path) -> Trained:
    return open_gates(open_trained(str(root / "flamingo")))


def with_towers(
    trained: Trained,
    folder: Path,
    language: transformers.PretrainedConfig,
    vision: transformers.PretrainedConfig | str,
    *,
    losses: dict | None = None,
    **changes: dict,
) -> Trained:
    """The same run with other towers, which lie in a folder, and other sizes of the trained parts."""
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(language).save_pretrained(folder / "language")
    trained.objective.text.tokenizer.save_pretrained(folder / "language")
    vision_path = vision
    if not isinstance(vision, str):
        vision_path = str(folder / "vision")
        transformers.AutoModel.from_config(vision).save_pretrained(vision_path)
        (folder / "vision" / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": [0.4] * 3, "image_std": [0.3] * 3, "size": 32})
        )
    model = trained.config.model
    paths = {"language": str(folder / "language"), "vision": vision_path}
    towers = {p: getattr(model, p).model_copy(update={"path": path}) for p, path in paths.items()}
    sizes = {part: getattr(model, part).model_copy(update=new) for part, new in changes.items()}
    section = model.model_copy(update=towers | sizes)
    loss = LossConfig(**(losses or {}))
    trained.config = trained.config.model_copy(update={"model": section, "loss": loss})
    trained.objective.model = assemble(
        load_vision(vision_path),
        load_language(paths["language"]),
        section,
        token_ids=trained.objective.text.token_ids,
        seed=3,
        losses=loss,
    ).eval()
    trained.objective.image = flamingo_image(trained.config, trained.objective.model.vision)
    return open_gates(trained)


def ours(trained: Trained, images: list[list[bytes]]) -> dict:
    """What this project's own model makes of TEXTS."""
    objective, model = trained.objective, trained.objective.model
    prompts = []
    for row, text in zip(images, TEXTS, strict=True):
        parts = []
        for chunk in text.split("<|endofchunk|>"):
            shown = chunk.count("<image>") or len(row)
            parts += place_images(chunk, row[:shown])
            row = row[shown:]
        prompts.append(parts)
    encoded = encode_prompts(objective.text, objective.image, prompts)
    dtype = next(model.parameters()).dtype
    media, ids, mask = encoded.to(torch.device("cpu"), dtype)
    with torch.no_grad():
        labels = torch.full_like(ids, -100)
        logits = model(media, ids, mask, labels, with_logits=True).logits
    said = model.generate(
        media,
        ids,
        mask,
        max_new_tokens=6,
        eos_token_id=objective.text.end_ids,
        pad_token_id=objective.text.pad_id,
    )
    texts = [objective.text.decode(row[ids.shape[1] :].tolist()) for row in said]
    return {"input_ids": ids, "mask": mask, "logits": logits, "ids": said, "texts": texts}
