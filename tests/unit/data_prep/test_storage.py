import errno
import io
import os
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError

from data_prep.errors import ConfigError
from data_prep.schema import load_manifest
from data_prep.storage import Folder, write_file
from tests.helpers.s3 import s3_bucket

FILES = {"a.tar": b"0123456789", "deep/er/b.tar": b"", "a.txt": bytes(range(256))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    local = tmp_path_factory.mktemp("files")
    for name, data in FILES.items():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(data)
    with s3_bucket() as bucket:
        url = bucket.upload(local, "files")
        yield {"local": str(local), "s3": url, "slash": f"{url}/"}


@pytest.fixture(params=["local", "s3", "slash"])
def folder(request, folders):
    return Folder(folders[request.param], "k")


@pytest.fixture
def s3(folders):
    return Folder(folders["s3"], "k")


def test_files_are_listed_and_read(folder, tmp_path):
    assert folder.exists() and folder.exists("deep/er/b.tar") and not folder.exists("b.tar")
    assert folder.names(".tar") == ["a.tar", "deep/er/b.tar"]
    for name, data in FILES.items():
        assert folder.size(name) == len(data) and folder.read(name) == data
        with folder.open(name) as file:
            assert [file.read(3), file.read()] == [data[:3], data[3:]]
        folder.download(name, tmp_path / "copy")
        assert [p.name for p in tmp_path.iterdir()] == ["copy"]
        assert (tmp_path / "copy").read_bytes() == data


def test_a_file_that_is_not_there_is_an_os_error_and_leaves_no_part(folder, tmp_path):
    for call in (folder.size, folder.read, lambda name: folder.open(name).read(1)):
        with pytest.raises(FileNotFoundError):
            call("none.tar")
    with pytest.raises(FileNotFoundError):
        folder.download("none.tar", tmp_path / "copy")
    assert not list(tmp_path.iterdir())


def test_the_files_right_in_a_folder_are_listed_with_their_sizes(folder):
    assert [(f.name, f.bytes) for f in folder.files()] == [("a.tar", 10), ("a.txt", 256)]
    for file in folder.files():
        assert file.stamp and folder.stat(file.name) == file
    assert folder.stat("deep/er/b.tar").bytes == 0


def test_a_stamp_changes_with_the_file_and_only_then(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(b"old")
    with s3_bucket() as bucket:
        places = [
            Folder(str(tmp_path / "files"), "k"),
            Folder(bucket.upload(tmp_path / "files"), "k"),
        ]
        stamps = [place.stat("a").stamp for place in places]
        assert [place.stat("a").stamp for place in places] == stamps
        times = (tmp_path / "files" / "a").stat()
        (tmp_path / "files" / "a").write_bytes(b"new")
        os.utime(tmp_path / "files" / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
        bucket.upload(tmp_path / "files")
        assert not {place.stat("a").stamp for place in places} & {*stamps}


def test_a_file_is_read_from_any_position(folder):
    data = FILES["a.txt"]
    with folder.open_random("a.txt") as file:
        assert file.readable() and file.seekable()
        assert (file.read(3), file.tell(), file.read(0)) == (data[:3], 3, b"")
        assert (file.seek(-2, io.SEEK_END), file.read()) == (254, data[-2:])
        assert (file.seek(100), file.seek(5, io.SEEK_CUR), file.read(10)) == (
            100,
            105,
            data[105:115],
        )
        buffer = bytearray(4)
        assert (file.readinto(buffer), bytes(buffer)) == (4, data[115:119])
        assert (file.seek(300), file.read(1), file.read()) == (300, b"", b"")


def test_a_folder_is_no_file(folder):
    for name in ("deep", "deep/er", "none"):
        with pytest.raises(FileNotFoundError):
            folder.stat(name)
    with pytest.raises(FileNotFoundError):
        folder.open_random("none")
    with pytest.raises(FileNotFoundError):
        Folder(f"{folder.url.rstrip('/')}/none", "k").files()


def test_a_folder_that_is_not_there_is_empty(folder):
    missing = Folder(f"{folder.url.rstrip('/')}/none", "k")
    assert not missing.exists() and missing.names(".tar") == []


def test_spans_come_in_the_order_asked(s3):
    spans = [("a.txt", 250, 6), ("a.tar", 0, 1), ("a.txt", 3, 2)]
    assert s3.read_spans(spans) == [bytes(range(250, 256)), b"0", bytes([3, 4])]


@pytest.mark.parametrize("bad", [("none.tar", 0, 1), ("a.tar", 10, 1)])
def test_a_span_that_cannot_be_read_is_an_os_error(s3, bad, monkeypatch):
    monkeypatch.setattr("data_prep.store_files.WAITS", (0.0,))
    with pytest.raises(OSError):
        s3.read_spans([("a.tar", 0, 1), bad])


def test_local_spans_are_for_the_caller(folders):
    with pytest.raises(ValueError, match="open local files and read at positions instead"):
        Folder(folders["local"], "k").read_spans([("a.tar", 0, 1)])


def test_errors_of_a_client_are_os_errors(s3, tmp_path, monkeypatch):
    def fail(*arguments, **named):
        if str(tmp_path) in str(arguments):
            Path(arguments[-1]).write_bytes(b"half")  # what had come before the connection broke
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1")

    monkeypatch.setattr("data_prep.store_files.WAITS", (0.0, 0.0))
    file, spans = s3.open("a.tar"), s3.open_random("a.tar")
    monkeypatch.setattr(file._file, "read", fail)
    for name in (
        *("exists", "find", "size", "cat_file", "open", "cat_ranges", "get_file", "ls", "info"),
    ):
        monkeypatch.setattr(s3._files, name, fail, raising=True)
    calls = [
        s3.exists,
        lambda: s3.names(".tar"),
        lambda: s3.size("a.tar"),
        lambda: s3.read("a.tar"),
        lambda: s3.open("a.tar"),
        lambda: file.read(1),
        lambda: spans.read(1),
        lambda: s3.open_random("a.tar"),
        lambda: s3.stat("a.tar"),
        s3.files,
        lambda: s3.read_spans([("a.tar", 0, 1)]),
        lambda: s3.download("a.tar", tmp_path / "copy"),
    ]
    for call in calls:
        with pytest.raises(OSError, match="EndpointConnectionError: Could not connect"):
            call()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="can be read .*Could not connect"):
        load_manifest(s3, "source.path")


@pytest.mark.parametrize(
    ("url", "said"), [("foo://b/x", "Protocol not known: foo"), ("gs://b/x", "install gcsfs")]
)
def test_a_kind_of_url_that_cannot_be_read_is_refused(url, said):
    with pytest.raises(ConfigError) as refused:
        Folder(url, "data.sources.a.path")
    (problem,) = refused.value.problems
    assert (problem.key, problem.value) == ("data.sources.a.path", url)
    assert problem.rule.startswith("is a path, or a URL of a store that can be read")
    assert said in problem.rule
    assert problem.remedy == "correct the URL, or install the package it names"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_file(tmp_path / "a", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "a", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]
