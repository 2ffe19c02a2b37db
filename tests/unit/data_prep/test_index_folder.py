"""Folders as img2dataset and others leave them, indexed and read as `webdataset` reads them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import webdataset

from data_prep.errors import ConfigError
from data_prep.index_folder import index_folder
from data_prep.schema import load_manifest
from pipeline.data.dataset import Dataset
from pipeline.data.remote import RemoteShards
from tests.helpers.foreign_tars import SIZES, check_against_webdataset, document, pair, write_tars
from tests.helpers.s3 import s3_bucket

REPOSITORY = Path(__file__).resolve().parents[3]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pipeline", "index", *map(str, arguments)]


def refused(*arguments, **named) -> list:
    with pytest.raises(ConfigError) as error:
        index_folder(*arguments, workers=1, **named)
    return error.value.problems


@pytest.mark.parametrize("sample", [pair, document])
def test_a_folder_reads_as_webdataset_reads_it(tmp_path, sample):
    tars, told = write_tars(tmp_path / "tars", sample), []
    before = {path.name for path in tars.iterdir()}
    summary = index_folder(
        str(tars), workers=2, advance=lambda done, total, statuses: told.append((done, total))
    )
    manifest = load_manifest(tars, "k")
    assert summary == {
        "folder": str(tars),
        "shards": 3,
        "samples": 20,
        "statuses": {"ok": 20},
        "fingerprint": manifest.fingerprint,
    }
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [s.path for s in manifest.shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [s.samples for s in manifest.shards] == [*SIZES] and manifest.source == "tars"
    assert {path.name for path in tars.iterdir()} - before == {"index", "manifest.json"}
    assert sorted(path.name for path in (tars / "index").iterdir()) == [
        f"{i:06d}.npy" for i in range(3)
    ]
    check_against_webdataset(Dataset(str(tars), "k"), tars)


def test_with_output_the_folder_of_the_tars_is_left_alone(tmp_path, monkeypatch):
    write_tars(tmp_path / "tars")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    index_folder("tars/", Path("deep/index"), workers=1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    manifest = load_manifest("deep/index", "k")
    assert [s.path for s in manifest.shards] == [
        str(p) for p in sorted(before) if p.suffix == ".tar"
    ]
    assert manifest.source == "tars"
    monkeypatch.chdir("/")
    check_against_webdataset(Dataset(str(tmp_path / "deep" / "index"), "k"), tmp_path / "tars")


def test_the_name_of_the_folder_is_found_where_it_is_called_a_dot(tmp_path, monkeypatch):
    monkeypatch.chdir(write_tars(tmp_path / "tars", sizes=(1,)))
    index_folder(".", workers=1)
    assert load_manifest(".", "k").source == "tars"


def test_what_was_done_is_not_done_again(tmp_path):
    """The others are: one whose index or note is lost, and one whose tar has changed meanwhile."""
    tars = write_tars(tmp_path / "tars", sizes=(2, 2, 2, 2, 2))
    (tars / "99999.tar").write_bytes(b"")
    refused(str(tars))
    (tars / "99999.tar").unlink()
    index = tars / "index"
    (index / "000000.npy").unlink()
    (index / "000001.note.json").unlink()
    with webdataset.TarWriter(str(tars / "00002.tar")) as tar:
        for i in range(9):
            tar.write({"__key__": f"new{i}", **pair(i)})
    before = {p.name: p.stat().st_mtime_ns for p in index.glob("*.npy")}
    assert index_folder(str(tars), workers=1)["samples"] == 2 * 4 + 9
    after = {p.name: p.stat().st_mtime_ns for p in index.glob("*.npy")}
    assert {name for name in after if after[name] == before.get(name)} == {
        "000003.npy",
        "000004.npy",
    }
    check_against_webdataset(Dataset(str(tars), "k"), tars)


@pytest.mark.parametrize("output", [None, "elsewhere"])
def test_killed_and_run_again_it_gives_the_same(tmp_path, output):
    tars = write_tars(tmp_path / "tars", sizes=(200,) * 20)
    folder = tmp_path / output if output else tars
    index_folder(str(tars), folder, workers=2)
    wanted = (folder / "manifest.json").read_bytes()
    indexes = {p.name: p.read_bytes() for p in (folder / "index").iterdir()}
    again = command(tars, "--again", "--workers", 2, *(["--output", folder] if output else []))
    process = subprocess.Popen(again, cwd=REPOSITORY, start_new_session=True)
    while not list((folder / "index").glob("*.note.json")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    deadline = time.monotonic() + 60
    while left := processes_of(process.pid):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)
    notes = list((folder / "index").glob("*.note.json"))
    assert 0 < len(notes) < 20
    (folder / "index" / ".000019.npy.12345").write_bytes(b"half")
    index_folder(str(tars), folder, workers=2)
    assert (folder / "manifest.json").read_bytes() == wanted
    assert {p.name: p.read_bytes() for p in (folder / "index").iterdir()} == indexes


def processes_of(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_broken_tars_are_refused_by_name_and_the_others_kept(tmp_path):
    tars = write_tars(tmp_path / "tars")
    whole = (tars / "00001.tar").read_bytes()
    (tars / "00001.tar").write_bytes(whole[:700])
    (tars / "00003.tar").write_bytes(b"")
    one, other = refused(str(tars))
    assert (one.key, one.value) == ("TARS", "00001.tar")
    assert one.rule.startswith("is a whole tar: ")
    assert (other.value, other.rule) == ("00003.tar", "is a whole tar: it breaks off at byte 0")
    assert one.remedy == "bring the file whole, or take it away; the others need not be read again"
    assert not (tars / "manifest.json").exists()
    before = (tars / "index" / "000000.npy").stat().st_mtime_ns
    (tars / "00001.tar").write_bytes(whole)
    (tars / "00003.tar").unlink()
    assert index_folder(str(tars), workers=1)["samples"] == sum(SIZES)
    assert (tars / "index" / "000000.npy").stat().st_mtime_ns == before
    check_against_webdataset(Dataset(str(tars), "k"), tars)


def test_again_reads_what_has_changed(tmp_path):
    tars = write_tars(tmp_path / "tars", sizes=(2, 3))
    first = index_folder(str(tars), workers=1)["fingerprint"]
    (tars / "index" / "000000.note.json").write_text("killed before it was taken away")
    (problem,) = refused(str(tars))
    assert (problem.key, problem.value) == ("TARS", str(tars))
    assert problem.rule == "has no manifest.json yet"
    assert problem.remedy == "use it as it is, or give --again to read the tars once more"
    assert index_folder(str(tars), workers=1, again=True)["fingerprint"] == first
    with webdataset.TarWriter(str(tars / "00001.tar")) as tar:
        tar.write({"__key__": "new", **pair(0)})
    assert index_folder(str(tars), workers=1, again=True)["fingerprint"] != first
    check_against_webdataset(Dataset(str(tars), "k"), tars)


@pytest.mark.parametrize("name", ["none", "empty", "file"])
def test_a_folder_without_tars_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (problem,) = refused(str(tmp_path / name))
    assert (problem.key, problem.value) == ("TARS", str(tmp_path / name))
    assert problem.rule == "holds .tar files in WebDataset form"
    assert problem.remedy == "correct the path"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["empty", "file"]


@pytest.mark.parametrize("output", [False, True])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, output):
    tars = write_tars(tmp_path / "tars", sizes=(1,))
    folder = tmp_path / "other" if output else tars
    folder.mkdir(exist_ok=True)
    (folder / "index").write_text("a file where a folder should be")
    (problem,) = refused(str(tars), folder if output else None)
    assert (problem.key, problem.value) == ("--output" if output else "TARS", str(folder))
    assert problem.rule.startswith("can be written to ([Errno 17] File exists")
    assert problem.remedy == "correct the path, or give a folder with --output"


def test_a_url_needs_an_output():
    (problem,) = refused("s3://bucket/tars")
    assert problem.key == "--output"
    assert "these tars lie behind a URL" in problem.rule
    assert problem.remedy == "give a folder with --output"


def test_tars_in_a_store_are_indexed_into_a_local_folder(tmp_path):
    tars = write_tars(tmp_path / "tars")
    index_folder(str(tars), workers=1)
    with s3_bucket() as bucket:
        url = bucket.upload(tars)
        # In a process of its own: the workers' environment is that of the moment they first start.
        run = command(url + "/", "--output", tmp_path / "index", "--workers", 2)
        done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert {k: summary[k] for k in ("shards", "samples")} == {"shards": 3, "samples": 20}
        manifest = load_manifest(tmp_path / "index", "k")
        assert [s.path for s in manifest.shards] == [f"{url}/{i:05d}.tar" for i in range(3)]
        assert manifest.source == "tars"
        ours, theirs = (load_manifest(p, "k").shards for p in (tmp_path / "index", tars))
        assert [s.sha256 for s in ours] == [s.sha256 for s in theirs]
        for name in ("000000.npy", "000002.npy"):
            assert (tmp_path / "index" / "index" / name).read_bytes() == (
                tars / "index" / name
            ).read_bytes()
        for read in ("shards", "ranges"):
            remote = RemoteShards(read, tmp_path / "cache", 10**9)
            check_against_webdataset(Dataset(str(tmp_path / "index"), "k", remote=remote), tars)


def test_a_store_that_cannot_be_listed_is_refused(tmp_path):
    with s3_bucket() as bucket:
        (problem,) = refused(f"{bucket.url}-other/tars", tmp_path / "index")
    assert (problem.key, problem.value) == ("TARS", f"{bucket.url}-other/tars")
    assert problem.rule == "can be listed (The specified bucket does not exist)"
    assert problem.remedy == "correct the URL, the credentials or the end point of the store"
    assert not (tmp_path / "index").exists()
