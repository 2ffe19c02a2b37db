import json

import pytest
from PIL import Image

from data_prep.errors import ConfigError
from pipeline.generation.requests import Request, WrongRequest, read_lines, read_shots
from pipeline.generation.settings import Sampling


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


def lines(*rows):
    return [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]


def test_a_line_is_a_request(folder):
    shots = [{"image": "b.png", "text": "a cat"}]
    row = {"images": ["a.png"], "prompt": "a", "shots": shots, "id": 7}
    (request,) = read_lines(lines(row, b""), folder)
    assert (request.id, request.prompt, request.key) == ("7", "a", "line 1")
    a, b = ((folder / f"{name}.png").read_bytes() for name in "ab")
    assert request.parts() == [b, "a cat", a, "a"]
    assert request.files == [folder / "b.png", folder / "a.png"]


def test_a_line_without_an_id_has_its_number(folder):
    found = read_lines(lines({"images": ["a.png"]}, b" \n", {"prompt": "two"}), folder)
    assert [r.id for r in found] == ["1", "3"]


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (b"{", "is JSON"),
        (b"\xff\xfe\xff", "is JSON"),
        (b'{"prompt": "\\ud83d"}', "is JSON .*surrogates"),
        (b"[1]", "is a JSON object"),
        ({"prompt": "a", "id": [1]}, "is a text or a whole number"),
        ({"image": "a.png"}, "has the keys .*; not image"),
        ({"images": "a.png"}, "has texts in images"),
        (
            {"images": ["a.png"], "shots": [{"image": "a.png"}]},
            "an image and a text in each of shots",
        ),
        ({"images": ["gone.png"]}, "gone.png.*is a file"),
        (
            {"images": ["text.png"]},
            "text.png.*is an image .UnidentifiedImageError.*give one of JPEG",
        ),
        ({"images": ["."]}, "is an image .Is a directory"),
        ({"images": ["\0"]}, "is an image .ValueError"),
        ({"images": ["a.png"], "prompt": "<image><image>"}, "2 for 1"),
        ({}, "has an image or a prompt"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(folder, row, rule):
    good, wrong = read_lines(lines({"images": ["a.png"]}, row), folder)
    assert isinstance(good, Request) and isinstance(wrong, WrongRequest)
    with pytest.raises(ConfigError, match=f"(?s)line 2.*{rule}"):
        raise ConfigError(wrong.problems)


def test_all_that_is_wrong_with_a_line_is_told_under_its_id(folder):
    row = {"images": ["gone.png", "text.png"], "prompt": "<image>", "id": "seven"}
    (wrong,) = read_lines(lines(row), folder)
    assert wrong.id == "seven"
    assert [p.rule.split(" (")[0] for p in wrong.problems] == [
        "is a file",
        "is an image",
        "has a mark <image> for every image: 1 for 2",
    ]


def test_an_id_is_given_once(folder):
    rows = [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}, {"prompt": "c", "id": 2}]
    good, wrong, other = read_lines(lines(*rows), folder)
    assert "is given once; line 1 has it too" in str(ConfigError(wrong.problems))
    assert [good.id, wrong.id, other.id] == ["x", "line 2", "2"]


def test_shots_of_arguments(folder):
    shots, problems = read_shots(["a.png=x = y", "a.png", "=x", "b.png="])
    assert [(str(image), text) for image, text in shots] == [("a.png", "x = y")]
    assert [p.value for p in problems] == ["a.png", "=x", "b.png="]
    assert {p.rule for p in problems} == {"is written IMAGE=TEXT"}


def test_files_that_went_away_meanwhile_are_named(folder):
    request = Request("1", [folder / "a.png"])
    (folder / "a.png").unlink()
    with pytest.raises(ConfigError, match="(?s)a.png.*can be read .No such file"):
        request.parts()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_new_tokens": 0}, {"beams": 0}, {"temperature": -1.0}, {"top_p": 0.0}),
        {"beams": 2, "temperature": 1.0},
    ],
)
def test_sampling_that_cannot_be(wrong):
    assert len(Sampling(**wrong).problems()) == 1
    assert not Sampling().problems()


def test_nothing_draws_unless_told_and_drawing_is_from_the_whole_mass_told():
    assert Sampling().of_generate() == {"max_new_tokens": 32, "num_beams": 1}
    told = Sampling(temperature=0.5, top_p=0.9).of_generate()
    assert (told["do_sample"], told["temperature"], told["top_p"]) == (True, 0.5, 0.9)
    assert told["top_k"] == 0
