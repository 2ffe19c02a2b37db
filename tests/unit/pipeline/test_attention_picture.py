import numpy as np
import pytest
from PIL import Image

from pipeline.attention_picture import LINE, TILE, WordMaps, draw_words, look_at_words
from pipeline.prompts import image_bytes
from pipeline.trained import open_trained
from tests.helpers.pictures import noise_picture


@pytest.fixture(scope="module")
def objective(trained_root):
    return open_trained(str(trained_root / "flamingo")).objective


def picture():
    return image_bytes(noise_picture(64, 64))


def test_words_are_those_of_the_text_whatever_its_tokens(objective):
    found = look_at_words(objective, [picture()], "two small circles left of a star")
    assert found.words == ["two", "small", "circles", "left", "of", "a", "star"]
    assert found.maps.shape == (7, 1, 4, 4)
    np.testing.assert_allclose(found.maps.sum((1, 2, 3)), 1.0, rtol=1e-5)
    assert [p.size for p in found.pictures] == [(64, 64)]


def test_a_text_behind_two_images_sees_the_last(objective):
    found = look_at_words(objective, [picture(), "red", picture()], "blue star")
    sums = found.maps.sum((2, 3))
    np.testing.assert_allclose(sums, [[0.0, 1.0]] * 2, atol=1e-5)


def test_no_text_has_no_words(objective):
    found = look_at_words(objective, [picture()], "")
    assert found.words == [] and len(found.maps) == 0
    assert draw_words(found).size[1] > TILE


def test_the_picture_is_bright_where_the_word_looks():
    maps = np.zeros((1, 1, 4, 4), np.float32)
    maps[0, 0, 0, 3] = 1.0
    white = Image.new("RGB", (32, 32), "white")
    sheet = np.asarray(draw_words(WordMaps(["star"], maps, [white])).convert("L"), np.float32)
    tile = sheet[:TILE, TILE + 8 + 4 : 2 * TILE + 8 + 4]
    corner, rest = tile[8:24, -24:-8].mean(), tile[TILE // 2 :, : TILE // 2].mean()
    assert corner > 200 and rest < 80


def test_the_images_that_are_looked_at_stand_in_front():
    """Of a prompt with examples that is the query, not the first example."""
    red, green, blue = (Image.new("RGB", (32, 32), c) for c in ("red", "lime", "blue"))
    maps = np.zeros((2, 3, 4, 4), np.float32)
    maps[0, 2], maps[1, 1] = 1 / 16, 1 / 16
    sheet = draw_words(WordMaps(["two", "stars"], maps, [red, green, blue]), "two stars")
    tiles = [sheet.getpixel((n * (TILE + 8) + TILE // 2, TILE // 2)) for n in range(4)]
    assert tiles == [(0, 255, 0), (0, 0, 255), (0, 0, 255), (0, 255, 0)]
    nothing = draw_words(WordMaps([], maps[:0], [red, blue]))
    assert nothing.getpixel((TILE // 2, TILE // 2)) == (0, 0, 255)


def test_long_words_and_other_scripts_keep_to_their_tiles():
    maps = np.full((2, 1, 4, 4), 1 / 16, np.float32)
    words = ["Donaudampfschifffahrtsgesellschaft" * 3, "\u732b"]
    white = Image.new("RGB", (32, 32), "white")
    short = draw_words(WordMaps(["a", "\u732b"], maps, [white]), "t")
    long = draw_words(WordMaps(words, maps, [white]), "t" * 500)
    assert short.size == long.size
    differing = np.asarray(short, int) - np.asarray(long, int)
    # Only the title and what stands below the tile of the word differ.
    below = differing[TILE + LINE :]
    assert below.any()
    assert not below[:, : TILE + 8].any() and not below[:, 2 * (TILE + 8) :].any()
