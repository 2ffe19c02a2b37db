"""Against `tarfile` and `webdataset`, over drawn names and contents in every form of tar."""

import io
import random
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from data_prep.tar_members import BLOCK, kind_of, members, sample_parts, split_name

FORMATS = (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
NAMES = st.lists(
    st.text(st.characters(exclude_characters="./\0\n\r", codec="utf-8"), min_size=1, max_size=90),
    min_size=1,
    max_size=3,
).map("/".join)
CONTENTS = st.binary(max_size=1500)


def make_tar(files, format=tarfile.PAX_FORMAT, mtime=0.0, kind=tarfile.REGTYPE) -> bytes:
    """The members of a tar, without the zeros behind them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.type = len(data), mtime, kind
            tar.addfile(info, io.BytesIO(data))
        end = tar.offset
    return buffer.getvalue()[:end]


def outcome(span: bytes) -> object:
    """What `sample_parts` gives, or "refused"; any other exception passes through."""
    try:
        return sample_parts(span)
    except ValueError:
        return "refused"


@given(NAMES, CONTENTS, st.text(), st.sampled_from(FORMATS), st.floats(0, 2e9))
def test_members_are_those_of_tarfile(key, image, text, format, mtime):
    if format == tarfile.USTAR_FORMAT:
        key, mtime = key.encode("ascii", "replace").decode()[-90:].lstrip("/"), int(mtime)
    files = [(f"{key}.jpg", image), (f"{key}.txt", text.encode()), (f"{key}.json", b"{}")]
    span = make_tar(files, format, mtime)
    assert [(n, span[a:b]) for n, a, b in members(span)] == files
    assert sample_parts(span) == (key, [image, text])


def test_the_prefix_of_a_long_ustar_name_is_followed():
    name = "/".join(["folder"] * 20) + "/000.jpg"
    assert sample_parts(make_tar([(name, b"i")], tarfile.USTAR_FORMAT))[0] == name[:-4]


@pytest.mark.parametrize("format", FORMATS[1:])
def test_the_long_name_of_a_folder_is_not_the_next_file_s(format):
    folder = make_tar([("f" * 150 + "/", b"")], format, kind=tarfile.DIRTYPE)
    assert sample_parts(folder + make_tar([("a.jpg", b"i")], format)) == ("a", [b"i"])


@pytest.mark.parametrize("format", FORMATS)
def test_cut_off_anywhere_it_is_refused_or_the_same(format):
    key = "k" if format == tarfile.USTAR_FORMAT else "\u00e9" * 150
    draw = random.Random()
    files = [(f"{key}.jpg", draw.randbytes(700)), (f"{key}.txt", b"a text"), (f"{key}.json", b"{}")]
    span = make_tar(files, format, mtime=0 if format == tarfile.USTAR_FORMAT else 1.5)
    whole = sample_parts(span)
    # Cut between two members it is a sample with fewer: nothing in the bytes tells.
    between = [-(-end // BLOCK) * BLOCK for _, _, end in members(span)][:-1]
    for length in range(len(span)):
        found = outcome(span[:length])
        if any(end - BLOCK < length <= end for end in between):
            assert found == "refused" or found[1] == whole[1][: len(found[1])]
        else:
            assert found in (whole, "refused"), length


@settings(max_examples=500)
@given(st.randoms(use_true_random=True), st.sampled_from(FORMATS), st.integers(1, 20))
def test_flipped_bytes_are_refused_or_give_parts(draw, format, flips):
    files = [("a/b.0.txt", b"one"), ("a/b.1.jpg", b"two"), ("a/b.2.txt", b"three")]
    span = bytearray(make_tar(files, format, mtime=3))
    for _ in range(flips):
        span[draw.randrange(len(span))] = draw.randrange(256)
    outcome(bytes(span))


@given(st.binary(max_size=3 * BLOCK))
def test_noise_is_refused(span):
    assert outcome(span) == "refused"


@pytest.mark.parametrize(
    "size", [b"-0000001000\0", b"0000000009\0\0", b"\xff" * 12, b"0x1        \0"]
)
def test_a_broken_size_is_refused(size):
    span = make_tar([("a.jpg", b"")], tarfile.USTAR_FORMAT)
    with pytest.raises(ValueError, match="a tar header with a broken size|are cut off"):
        list(members(span[:124] + size + span[136:]))


def test_documents_are_in_the_order_of_their_numbers():
    parts = [f"text {i}" if i % 2 == 0 else f"image {i}".encode() for i in range(23)]
    files = [
        (f"d.{i}.{'jpg' if i % 2 else 'txt'}", p if i % 2 else p.encode())
        for i, p in enumerate(parts)
    ]
    files.append(("d.json", b"{}"))
    assert sample_parts(make_tar(files)) == ("d", parts)
    random.Random().shuffle(files)
    assert sample_parts(make_tar(files)) == ("d", parts)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([("a.jpg", b""), ("b.txt", b"")], "members of 2 samples where one was expected"),
        ([(".hidden.jpg", b"")], "members of 0 samples where one was expected"),
        ([("a.json", b"{}"), ("a.seg.png", b"")], "a sample without image and without text"),
        ([("a.txt", b"\xff")], "the text is not UTF-8: 'utf-8' codec"),
    ],
)
def test_what_is_no_sample_is_refused(files, said):
    with pytest.raises(ValueError, match=said):
        sample_parts(make_tar(files))


def test_what_macos_puts_between_is_no_part():
    files = [("._a.jpg", b"mac"), ("a.jpg", b"i"), ("._a.txt", b"mac"), ("a.txt", b"t")]
    assert sample_parts(make_tar(files)) == ("a", [b"i", "t"])


@given(st.text(st.sampled_from("ab01./J"), min_size=1))
def test_names_are_divided_as_webdataset_divides_them(name):
    key, extension = base_plus_ext(name)
    if key is None or key.endswith("/"):  # a hidden file, which webdataset takes in in a folder
        assert split_name(name) == ("", "")
    else:
        assert split_name(name) == (key, extension.lower())


@given(st.text(), st.sampled_from(["jpg", "txt", ""]))
def test_any_extension_is_of_some_kind(number, last):
    kind, place = kind_of(f"{number}.{last}")
    if kind:
        assert place == int(number)


@pytest.mark.parametrize(
    ("extension", "expected"),
    [
        *(("jpg", ("image", -3)), ("webp", ("image", -3)), ("txt", ("text", -1))),
        ("prompt", ("prompt", -2)),
        *(("10.png", ("image", 10)), ("0.text", ("text", 0)), ("json", (None, 0))),
        *(("\u00b2.jpg", (None, 0)), ("-1.jpg", (None, 0)), ("1.2.jpg", (None, 0))),
    ],
)
def test_kinds(extension, expected):
    assert kind_of(extension) == expected
