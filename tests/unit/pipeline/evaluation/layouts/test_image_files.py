import os

import pytest

from data_prep.errors import ConfigError
from pipeline.evaluation.layouts.image_files import ImageFiles, is_image


def test_the_first_that_is_there(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.jpg").write_bytes(b"x")
    (tmp_path / "c.jpg").write_bytes(b"x")
    files = ImageFiles(str(tmp_path), "key")
    assert files.first(("a.jpg", "deep/b.jpg", "c.jpg")) == "deep/b.jpg"
    assert (
        files.first(("c.jpg/x", "no/such/folder.jpg", "x" * 300 + "/y", "\ud800/y", "d/")) is None
    )


def test_a_folder_that_may_not_be_read_is_no_empty_one(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    files = ImageFiles(str(tmp_path), "evaluation.data.path")
    monkeypatch.setattr(os, "listdir", denied)  # root may read everything
    with pytest.raises(ConfigError, match="can be listed .*Permission denied"):
        files.first(("a.jpg",))


def test_images_by_extension():
    assert (
        is_image("a.JPEG") and is_image("b.c.webp") and not is_image("jpg") and not is_image("a.md")
    )
