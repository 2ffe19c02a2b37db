import pytest

from data_prep.fetch.content_type import may_be_image


@pytest.mark.parametrize(
    "kind",
    [
        *("image/jpeg", "image/svg+xml", "application/octet-stream", "binary/octet-stream"),
        *("application/x-download", "jpg", "image", "", "unknown/unknown"),
    ],
)
def test_what_may_be_an_image(kind):
    assert may_be_image(kind)


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "text/html",
            "text/plain",
            "application/json",
            "application/pdf",
            "application/xhtml+xml",
        ),
        *("video/mp4", "audio/mpeg", "font/woff2", "multipart/mixed", "message/rfc822"),
    ],
)
def test_what_is_none(kind):
    assert not may_be_image(kind)
