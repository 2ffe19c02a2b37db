import json

import pytest

from data_prep.errors import ConfigError
from data_prep.schema import INDEX_DTYPE, Manifest, load_manifest


def make_manifest(**changes):
    values = dict(source="a", input_fingerprint="i", policy_hash="p", rows=1, samples=1)
    return Manifest(**{**values, "statuses": {"ok": 1}, "shards": [], **changes})


def test_an_index_record_has_38_bytes():
    assert INDEX_DTYPE.itemsize == 38


def test_the_fingerprint_follows_the_content():
    assert make_manifest().fingerprint == make_manifest().fingerprint
    assert make_manifest().fingerprint != make_manifest(policy_hash="q").fingerprint


def test_the_fingerprint_does_not_follow_the_place_of_the_tars():
    entry = {"name": "000000", "rows": 1, "samples": 1, "bytes": 1, "sha256": "0" * 64}
    here, there, other = (
        make_manifest(shards=[entry | changes])
        for changes in (
            {"path": "a.tar"},
            {"path": "/b/a.tar"},
            {"path": "a.tar", "sha256": "1" * 64},
        )
    )
    assert here.fingerprint == there.fingerprint != other.fingerprint


@pytest.mark.parametrize("changes", [{"sha256": "../pwned"}, {"name": "../x"}, {"bytes": -1}])
def test_a_manifest_names_no_file_outside_its_folders(changes):
    entry = {"name": "0", "path": "a", "rows": 1, "samples": 1, "bytes": 1, "sha256": "0" * 64}
    with pytest.raises(ValueError, match=next(iter(changes))):
        make_manifest(shards=[entry | changes])


def test_load_manifest_reads_what_was_written(tmp_path):
    (tmp_path / "manifest.json").write_text(make_manifest().model_dump_json())
    assert load_manifest(tmp_path, "data.a") == make_manifest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "this one does not, so it is no dataset folder"),
        ("{}", "must follow schema version 2; 7 fields do not"),
        (
            json.dumps(make_manifest().model_dump() | {"schema_version": 9}),
            "reads schema version 2, the folder has 9",
        ),
    ],
)
def test_load_manifest_refuses_with_the_key(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_manifest(tmp_path, "data.sources.a.folder")
    assert caught.value.problems[0].key == "data.sources.a.folder"


def test_load_manifest_refuses_a_missing_folder(tmp_path):
    with pytest.raises(ConfigError, match="the dataset folder must exist"):
        load_manifest(tmp_path / "nowhere", "data.a")
