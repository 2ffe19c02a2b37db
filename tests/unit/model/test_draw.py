import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from model.draw import draw_model, short_count
from model.plan import BlockPlan, MediaPlan, ModelPlan, PartPlan
from pipeline.cli.main import app

MEDIA = MediaPlan("image", "ViTModel", (3, 16, 16), 4, 24, 1, 3, 24)
NAMES = (
    *("image tower", "image resampler", "cross-attention", "feed-forwards", "experts"),
    *("new tokens", "language model"),
)


def plan(blocks, layers, media=(MEDIA,), extra=()):
    parts = [PartPlan(name, trainable=1000) for name in (*NAMES, *extra)]
    language = {"model": "A<B", "layers": layers, "width": 32, "vocabulary": 40}
    return ModelPlan(parts, 8, 1, list(media), blocks, language)


def parse(drawing):
    root = ElementTree.fromstring(drawing)
    marked = [e for e in root.iter() if e.get("data-name")]
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    return root, [e.get("data-name") for e in marked], texts


def test_every_part_is_named_and_every_block_stands_before_its_layer():
    blocks = [BlockPlan(1), BlockPlan(3, 4, 2)]
    root, marks, texts = parse(draw_model(plan(blocks, 5), "a & b"))
    assert [m for m in marks if m.startswith("block")] == ["block 0", "block 1"]
    assert set(NAMES) <= set(texts)
    assert "a & b" in texts
    rows = [text for text in texts if text.startswith(("layer", "gated"))]
    assert rows == [
        "layer 0",
        "gated block 0: cross-attention, feed-forward",
        "layers 1 to 2",
        "gated block 1: cross-attention, 4 experts, top 2",
        "layers 3 to 4",
    ]
    # Four experts and their legend, which has one of each.
    classes = [e.get("class") for e in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert (classes.count("chosen"), classes.count("expert")) == (2 + 1, 2 + 1)


def test_many_blocks_are_drawn_as_the_first_and_last():
    _, marks, texts = parse(draw_model(plan([BlockPlan(2 * i) for i in range(12)], 24)))
    blocks = [m for m in marks if m.startswith("block")]
    assert blocks == [f"block {i}" for i in (0, 1, 2, 9, 10, 11)]
    assert "6 more blocks and 12 layers in the same way" in texts


def test_each_block_gets_an_arrow_from_the_latents():
    root, _, _ = parse(draw_model(plan([BlockPlan(i) for i in range(3)], 3)))
    lines = [
        e for e in root.iter() if e.get("class") == "media" and e.get("marker-end") is not None
    ]
    assert len(lines) == 3


@pytest.mark.parametrize("num_blocks", [1, 30])
def test_nothing_is_drawn_outside_of_the_picture_or_over_another_box(num_blocks):
    sound = replace(MEDIA, kind="sound", input_shape=(80, 100))
    extra = ("sound tower", "sound resampler", "contrastive head")
    blocks = [BlockPlan(i, 8, 2, True) for i in range(num_blocks)]
    root, _, _ = parse(draw_model(plan(blocks, num_blocks, (MEDIA, sound), extra)))
    width, height = float(root.get("width")), float(root.get("height"))
    boxes = []
    for box in list(root.iter("{http://www.w3.org/2000/svg}rect"))[1:]:
        x, y, w, h = (float(box.get(name)) for name in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
        boxes.append((x, y, w, h))
    for i, (x, y, w, h) in enumerate(boxes):
        for a, b, c, d in boxes[:i]:
            inside = w < 10 or c < 10  # squares of experts stand in their block
            assert inside or x >= a + c or a >= x + w or y >= b + d or b >= y + h


def test_counts_have_three_digits():
    assert [short_count(n) for n in (0, 950, 12288, 999_999, 88_184_832, 70.6e9, 1.2e12)] == [
        *("0", "950", "12.3 K", "1 M", "88.2 M", "70.6 B", "1.2 T")
    ]


def test_the_command_writes_drawing_and_json(tmp_path):
    svg, summary = tmp_path / "new" / "model.svg", tmp_path / "other" / "model.json"
    arguments = ["model", "show", "flamingo_9b_moe", "--world-size", "16"]
    files = ["--svg", str(svg), "--json", str(summary)]
    result = CliRunner().invoke(app, [*arguments, *files, "optim.name=adamw"])
    assert result.exit_code == 0, result.output
    _, marks, _ = parse(svg.read_text())
    assert sum(m.startswith("block") for m in marks) == 8
    found = json.loads(summary.read_text())
    assert [row["world_size"] for row in found["memory"]] == [16] * 4
    trainable = found["parts"]["total"]["trainable"]
    assert found["memory"][3]["states"] == pytest.approx(8 * trainable / 16)
    assert "experts" in result.output
