"""Evaluation files in the field's layouts, with images that are really there, for tests."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(seed: int) -> bytes:
    """A small image of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_images(folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))


def write_json(path: Path, data: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return str(path)


def coco_data(count: int, captions: int = 5) -> dict:
    """COCO captions; image i has the number 100 + i."""
    return {
        "info": {},
        "licenses": [],
        "images": [
            {
                "id": 100 + i,
                "file_name": f"COCO_val2014_{100 + i:012d}.jpg",
                "height": 6,
                "width": 8,
            }
            for i in range(count)
        ],
        "annotations": [
            {"id": i * captions + j, "image_id": 100 + i, "caption": f"caption {j} of {i}"}
            for i in range(count)
            for j in range(captions)
        ],
    }


def karpathy_data(splits: list[str], filepath: str | None = "val2014") -> dict:
    """A Karpathy split with an image for each split named."""
    images = []
    for i, split in enumerate(splits):
        sentences = [
            {"tokens": ["caption", str(j)], "raw": f"Caption {j} of {i}.", "imgid": i, "sentid": j}
            for j in range(5)
        ]
        image = {"filename": f"image_{i}.jpg", "imgid": i, "sentids": [*range(5)], "split": split}
        images.append(
            image | {"sentences": sentences} | ({"filepath": filepath} if filepath else {})
        )
    return {"images": images, "dataset": "coco"}


def vqa_data(count: int, subtype: str = "val2014") -> tuple[dict, dict]:
    """VQAv2 questions and annotations, three questions an image; image i has the number 200 + i."""
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": subtype}
    questions = [
        {"image_id": 200 + i // 3, "question": f"What is {i}?", "question_id": 1000 + i}
        for i in range(count)
    ]
    annotations = [
        {
            "question_type": "what is",
            "multiple_choice_answer": "yes",
            "answers": [
                {"answer": ("yes", "no", "maybe")[(i + j) % 3], "answer_id": j + 1}
                for j in range(10)
            ],
            "image_id": 200 + i // 3,
            "answer_type": ("yes/no", "number", "other")[i % 3],
            "question_id": 1000 + i,
        }
        for i in range(count)
    ]
    return head | {"questions": questions}, head | {"annotations": annotations}
