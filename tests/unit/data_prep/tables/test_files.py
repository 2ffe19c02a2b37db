import pytest

from data_prep.errors import ConfigError
from data_prep.tables.files import find_files
from tests.helpers.s3 import s3_bucket

KEY = "ingest.sources.web.table"


def fill(folder, *names, data=b"x"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def names(found):
    return [file.name for file in found.files]


@pytest.fixture(scope="module")
def bucket():
    with s3_bucket() as bucket:
        yield bucket


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_table_is_a_file_or_the_files_right_in_a_folder(tmp_path, bucket, place):
    hidden = (".t.tsv", "_t.tsv", "README.md", "deeper/z.tsv", ".cache/c.tsv")
    fill(tmp_path / "t", "b.tsv", "a.TSV", "a10.tsv", "a9.tsv", *hidden)
    url = str(tmp_path / "t") if place == "local" else bucket.upload(tmp_path / "t", "t")
    for slash in ("", "/"):
        found = find_files(url + slash, KEY)
        assert (found.kind, names(found)) == ("tsv", ["a.TSV", "a10.tsv", "a9.tsv", "b.tsv"])
    found = find_files(f"{url}/b.tsv", KEY)
    assert (found.kind, names(found)) == ("tsv", ["b.tsv"])
    assert found.files[0].bytes == 1 and found.files[0].stamp
    assert found.folder.read("b.tsv") == b"x"


def test_a_local_folder_is_named_by_its_whole_path(tmp_path, monkeypatch):
    fill(tmp_path, "t/a.csv")
    monkeypatch.chdir(tmp_path)
    for url in ("t", "t/a.csv", "./t/../t"):
        assert find_files(url, KEY).folder.url == str(tmp_path / "t")


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize(
    ("files", "table", "rule", "remedy"),
    [
        ([], "t.tsv", "the URL table must exist", "correct the path"),
        (["t/deeper/a.tsv"], "t", "a folder of tables must hold", "name the folder that has them"),
        (["t/a.tsv", "t/b.csv"], "t", "one kind of .parquet, .tsv, .csv, .jsonl, .txt; here: .csv, .tsv",
         "keep one kind per folder"),
        (["a.xlsx"], "a.xlsx", "here: .xlsx", "convert or rename"),
        (["a"], "a", "here: (no extension)", "convert or rename"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(tmp_path, bucket, place, files, table, rule, remedy):
    fill(tmp_path / "d", "other.md", *files)
    url = str(tmp_path / "d") if place == "local" else bucket.upload(tmp_path / "d", tmp_path.name)
    with pytest.raises(ConfigError) as refused:
        find_files(f"{url}/{table}", KEY)
    (problem,) = refused.value.problems
    assert (problem.key, problem.value) == (KEY, f"{url}/{table}")
    assert rule in problem.rule and remedy in problem.remedy


def test_empty_files_are_refused_by_name(tmp_path):
    fill(fill(tmp_path, "b.csv"), "a.csv", "c.csv", data=b"")
    with pytest.raises(ConfigError, match="must not be empty; a.csv, c.csv has 0 bytes"):
        find_files(str(tmp_path), KEY)


def test_a_store_that_does_not_answer_is_told_of(bucket, monkeypatch):
    monkeypatch.setattr("data_prep.store_files.WAITS", ())
    url = f"{bucket.url}-none/t.csv"
    with pytest.raises(ConfigError, match="the URL table must (exist|be readable)"):
        find_files(url, KEY)
