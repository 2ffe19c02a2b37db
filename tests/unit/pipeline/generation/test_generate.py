"""`roseate generate` whole, on files, prompts, examples and JSON lines."""

import json

import pytest

from data_prep.errors import ConfigError
from pipeline.generation.generate import continue_prompts, generate, picture_files
from pipeline.generation.requests import Request, WrongRequest
from pipeline.generation.rows import read_rows
from pipeline.generation.settings import Sampling
from pipeline.trained import open_trained
from tests.helpers.command import exit_code
from tests.helpers.pictures import noise_picture


@pytest.fixture(scope="module")
def trained(trained_root):
    return open_trained(str(trained_root / "flamingo"))


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for name in "abc":
        noise_picture().save(tmp_path / f"{name}.png")
        paths.append(tmp_path / f"{name}.png")
    return paths


def command(monkeypatch, *arguments):
    return exit_code(monkeypatch, "generate", *arguments)


def test_files_are_captioned_each_by_itself(trained_root, trained, pictures, tmp_path, monkeypatch):
    told, run = tmp_path / "told.json", trained_root / "flamingo"
    seen = tmp_path / "seen"
    options = ["--max-new-tokens", "5", "--attention", seen, "--json", told]
    assert command(monkeypatch, run, *pictures, "seed=1", *options) == 0
    said = json.loads(told.read_text())["captions"]
    prompts = [[p.read_bytes()] for p in pictures]
    expected = continue_prompts(trained, prompts, Sampling(max_new_tokens=5))
    assert said == dict(zip(map(str, pictures), expected, strict=True))
    drawn = {p.name for p in seen.iterdir()}
    assert drawn == {f"{name}.attention.png" for name in "abc"}


def test_one_prompt_with_several_images_and_examples(
    trained_root, trained, pictures, tmp_path, monkeypatch
):
    told = tmp_path / "told.json"
    options = ["--prompt", "<image> red <image> two", "--shot", f"{pictures[2]}=a star"]
    options += ["--beams", "2", "--max-new-tokens", "4", "--json", told]
    assert command(monkeypatch, trained_root / "flamingo", *pictures[:2], *options) == 0
    a, b, c = (p.read_bytes() for p in pictures)
    parts = [c, "a star", a, " red ", b, " two"]
    (expected,) = continue_prompts(trained, [parts], Sampling(max_new_tokens=4, beams=2))
    assert json.loads(told.read_text())["captions"] == {"prompt": expected}


def test_drawing_follows_its_seed(trained_root, pictures, tmp_path, monkeypatch):
    found = []
    for number, seed in enumerate((1, 1, 2, 3)):
        told = tmp_path / f"{number}.json"
        options = ["--temperature", "5", "--seed", str(seed), "--json", told]
        assert command(monkeypatch, trained_root / "flamingo", pictures[0], *options) == 0
        found.append(told.read_text())
    assert found[0] == found[1] and len(set(found)) > 1


def write_lines(path, pictures, count):
    rows = [{"id": f"r{n}", "images": [pictures[n % 3].name]} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_lines_in_lines_out_and_a_second_start_goes_on(
    trained_root, pictures, tmp_path, monkeypatch, capsys
):
    lines, out, run = tmp_path / "in.jsonl", tmp_path / "out.jsonl", trained_root / "flamingo"
    write_lines(lines, pictures, 20)
    arguments = [run, "--input", lines, "--output", out, "--max-new-tokens", "3"]
    assert command(monkeypatch, *arguments) == 0
    whole = out.read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(20)]
    out.write_bytes(whole[: len(whole) // 2])  # killed in the middle of a line
    kept = len(read_rows(out))
    assert 0 < kept < 20
    with out.open("r+b") as file:  # ... and an error of an earlier start
        torn = file.read().splitlines(keepends=True)
        file.seek(0)
        file.write(b'{"id": "r19", "error": "x"}\n' + b"".join(torn))
    capsys.readouterr()
    assert command(monkeypatch, *arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["there_before"], summary["written"]) == (kept, 20 - kept)
    assert out.read_bytes() == whole


def test_texts_of_another_input_stay_in_the_output(trained_root, pictures, tmp_path, monkeypatch):
    lines, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    other = '{"id": "else", "text": "a red star"}\n'
    out.write_text(other)
    write_lines(lines, pictures, 1)
    arguments = ["--input", lines, "--output", out, "--max-new-tokens", "2"]
    assert command(monkeypatch, trained_root / "flamingo", *arguments) == 0
    first, second = out.read_text().splitlines(keepends=True)
    assert first == other and json.loads(second)["id"] == "r0"


def test_an_output_that_is_something_else_is_left_alone(pictures, tmp_path, monkeypatch, capsys):
    lines = tmp_path / "in.jsonl"
    write_lines(lines, pictures, 2)
    before = lines.read_bytes()
    for output, rule in (
        (lines, "line 1 is none"),
        (tmp_path, "Is a directory"),
        (lines / "x", "is a folder, or can be made one"),
    ):
        assert command(monkeypatch, "nowhere", "--input", lines, "--output", output) == 2
        assert rule in capsys.readouterr().err
    assert lines.read_bytes() == before


def test_wrong_lines_are_all_named_before_the_model_loads(
    trained_root, pictures, tmp_path, monkeypatch, capsys
):
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"images": ["a.png"]}\nnonsense\n{"images": ["gone.png"]}')
    assert command(monkeypatch, "nowhere", "--input", lines) == 2
    told = capsys.readouterr().err
    assert "2 problems" in told and "line 2" in told and "line 3" in told


def cut(pictures, tmp_path):
    """An image by its first bytes, of which most is missing."""
    broken = tmp_path / "broken.png"
    whole = pictures[0].read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    return broken


def test_with_keep_going_each_wrong_line_costs_its_own_row(
    trained_root, trained, pictures, tmp_path, monkeypatch, capsys
):
    lines, run = tmp_path / "in.jsonl", trained_root / "flamingo"
    cut(pictures, tmp_path)
    rows = [
        *('{"images": ["a.png"]}', "nonsense", '{"images": ["gone.png"], "id": "seven"}'),
        '{"images": ["b.png", "broken.png", "broken.png"]}',
        json.dumps({"images": ["a.png"], "prompt": "red " * 3000}),
        '{"images": ["b.png"], "prompt": "two"}',
    ]
    lines.write_text("\n".join(rows))
    assert command(monkeypatch, run, "--input", lines, "--keep-going") == 0
    caught = capsys.readouterr()
    found = [json.loads(line) for line in caught.out.splitlines()]
    assert [row["id"] for row in found] == ["1", "2", "seven", "4", "5", "6"]
    errors = [row.get("error") for row in found]
    assert errors[0] is None and errors[5] is None
    assert "is JSON" in errors[1] and "gone.png: is a file" in errors[2]
    assert errors[3].count("broken.png: image") == 2 and "image 2 can be decoded" in errors[3]
    assert "tokens: with --max-new-tokens 32 fits into" in errors[4]
    assert "6 rows, 4 with an error" in caught.err
    a, b = (p.read_bytes() for p in pictures[:2])
    said = continue_prompts(trained, [[a], [b, "two"]], Sampling())
    assert [found[0]["text"], found[5]["text"]] == said


def test_without_keep_going_a_broken_image_ends_it_and_what_came_before_is_kept(
    trained_root, pictures, tmp_path, monkeypatch, capsys
):
    lines, out, run = tmp_path / "in.jsonl", tmp_path / "out.jsonl", trained_root / "flamingo"
    broken = cut(pictures, tmp_path)
    names = ["a.png", "b.png", "broken.png", "c.png"]
    lines.write_text("".join(json.dumps({"images": [name]}) + "\n" for name in names))
    arguments = ["--input", lines, "--output", out, "--batch-size", "2", "--max-new-tokens", "2"]
    assert command(monkeypatch, run, *arguments) == 2
    told = capsys.readouterr().err
    assert "line 3" in told and str(broken) in told and "can be decoded" in told
    assert [*read_rows(out)] == ["1", "2"]
    broken.write_bytes(pictures[2].read_bytes())
    assert command(monkeypatch, run, *arguments) == 0
    assert [*read_rows(out)] == ["1", "2", "3", "4"]


def test_lines_are_drawn_each_in_a_file_of_its_own(trained, pictures, tmp_path):
    a, b = pictures[:2]
    requests = [
        Request("x/y", [a]),
        Request("x_y", [b]),
        Request(str(a), [a]),
        Request(str(tmp_path / "other" / "a.png"), [tmp_path / "other" / "a.png"]),
        WrongRequest("line 9", []),
        Request("words alone", [], "red"),
    ]
    looks = picture_files(requests, tmp_path / "looks")
    assert [p.name for p in looks.values()] == [
        *("x_y.attention.png", "x_y-2.attention.png", "a.attention.png", "a-2.attention.png"),
        "words_alone.attention.png",
    ]
    asked = [requests[0], requests[1], requests[5]]
    rows = [*generate(trained, asked, Sampling(max_new_tokens=4), looks=looks)]
    assert [row.get("attention") for row in rows] == [
        *(str(looks["x/y"]), str(looks["x_y"])),
        None,
    ]
    drawn = sorted(p.name for p in (tmp_path / "looks").iterdir())
    assert drawn == ["x_y-2.attention.png", "x_y.attention.png"]


def test_drawing_is_from_more_than_fifty_tokens(trained, pictures):
    """transformers would keep to the 50 likeliest of its own accord."""
    prompts = [[pictures[0].read_bytes()]] * 400
    sampling = Sampling(temperature=100.0, max_new_tokens=1)
    said = set(continue_prompts(trained, prompts, sampling))
    assert len(said) > 50


def test_a_prompt_that_is_too_long_is_named(trained, pictures):
    prompts = [[pictures[0].read_bytes(), "red"], [pictures[0].read_bytes(), "red " * 3000]]
    with pytest.raises(ConfigError, match="(?s)b = '300[0-9] tokens'.*fits into .* positions"):
        continue_prompts(trained, prompts, Sampling(), keys=["a", "b"])


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ([], "at least one file, or --prompt"),
        (["gone.png", "missing.png"], "2 problems"),
        (["gone.png"], "is a file"),
        (["--prompt", "<image>"], "1 marks <image> and no image is given"),
        (["--prompt", "x", "--shot", "a.png"], "is written IMAGE=TEXT"),
        (["--prompt", "x", "--beams", "0", "--top-p", "2"], "2 problems"),
        (["--input", "gone.jsonl"], "is a file of JSON lines"),
        (["a.png", "--prompt", "x", "--shot", "a", "--input", "gone.jsonl"], "4 problems"),
        (["a.png", "--input", "gone.jsonl"], "is not given beside --input"),
        (["--prompt", "x", "--output", "a.jsonl"], "stands with --input"),
        (["--prompt", "x", "--attention", "/dev/null"], "is a folder, or can be made one"),
    ],
)
def test_what_is_wrong_is_named(trained_root, monkeypatch, capsys, arguments, rule):
    assert command(monkeypatch, trained_root / "flamingo", *arguments) == 2
    assert rule in capsys.readouterr().err


def test_a_broken_image_is_named(trained_root, pictures, tmp_path, monkeypatch, capsys):
    broken, run = cut(pictures, tmp_path), trained_root / "flamingo"
    assert command(monkeypatch, run, pictures[0], broken) == 2
    told = capsys.readouterr().err
    assert str(broken) in told and "can be decoded" in told
    assert command(monkeypatch, run, pictures[0], broken, "gone.png", "--keep-going") == 0
    summary = json.loads(capsys.readouterr().out)
    assert [*summary["captions"]] == [str(pictures[0])]
    assert [*summary["errors"]] == [str(broken), "gone.png"]


def test_a_file_may_be_named_with_an_equals_sign(
    trained_root, pictures, tmp_path, monkeypatch, capsys
):
    odd = pictures[0].rename(tmp_path / "a=b.png")
    assert command(monkeypatch, trained_root / "flamingo", odd, "seed=1") == 0
    assert [*json.loads(capsys.readouterr().out)["captions"]] == [str(odd)]
