import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.curate.facts import FactsOf, facts_dtype, make_facts
from data_prep.curate.looks import look_at
from data_prep.index_folder import index_folder
from data_prep.schema import load_manifest
from tests.helpers.dataset import write_dataset
from tests.helpers.pictures import noise_picture

SIZES = [5, 0, 3]


def jpeg() -> bytes:
    buffer = io.BytesIO()
    noise_picture().resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def samples():
    """The second image is broken, the third sample a document, the fourth has a text alone."""
    found = []
    for row in range(sum(SIZES)):
        told = {"similarity": row / 10, "label": "red"} if row % 2 == 0 else {}
        found.append(
            {
                "jpg": jpeg(),
                "txt": f"gr\u00f6\u00dfe {row}".encode(),
                "json": json.dumps(told).encode(),
            }
        )
    found[1]["jpg"] = b"no image"
    found[2] = {"0.txt": b"before", "1.jpg": jpeg(), "2.txt": b"behind", "json": b"[1]"}
    found[3] = {"txt": b"no image at all", "json": b"no JSON"}
    return found


@pytest.fixture
def dataset(tmp_path, samples):
    write_dataset(tmp_path / "data", SIZES, lambda row: samples[row])
    return tmp_path / "data"


def facts_of(dataset, *columns: str) -> FactsOf:
    manifest = load_manifest(dataset, "k")
    return FactsOf(str(dataset), manifest, dataset.parent / "facts", columns)


def make(facts: FactsOf, shard: int) -> int:
    return make_facts(*facts.job(shard))


def test_facts_are_those_of_the_samples(dataset, samples):
    facts = facts_of(dataset, "similarity", "label")
    assert [make(facts, shard) for shard in range(3)] == SIZES
    found = np.concatenate([facts.open(shard) for shard in range(3)])
    miniatures = np.concatenate([facts.open_miniatures(shard) for shard in range(3)])
    assert found.dtype == facts_dtype(("similarity", "label"))
    assert found["readable"].tolist() == [True, False, *[True] * 6]
    assert found["has_image"].tolist() == [True, False, True, False, *[True] * 4]
    for row in (0, 2, 4, 7):
        members = samples[row]
        texts = [data.decode() for name, data in sorted(members.items()) if "txt" in name]
        (image,) = (data for name, data in members.items() if "jpg" in name)
        look, small = look_at(image)
        assert found["image"][row] == look and np.array_equal(miniatures[row], small)
        digest = hashlib.sha256("\n".join(texts).encode()).digest()[:8]
        assert found["text"][row] == int.from_bytes(digest, "big")
        assert found["characters"][row] == sum(map(len, texts))
    similarity = np.concatenate([facts.column(shard, "similarity") for shard in range(3)])
    np.testing.assert_array_equal(similarity, [0.0, *[np.nan] * 3, 0.4, np.nan, 0.6, np.nan])
    assert np.isnan(facts.column(0, "label")).all(), "no number"


def test_columns_of_the_ledger_are_found_by_their_row(dataset):
    (dataset / "ledger").mkdir()
    # Rows that did not end ok stand between; those of the first shard are 0 to 4.
    rows = [0, 1, 2, 3, 4, 100]
    table = {"row": rows, "punsafe": [row / 100 for row in rows], "license": ["x"] * len(rows)}
    pq.write_table(pa.table(table), dataset / "ledger" / "000000.parquet")
    facts = facts_of(dataset, "punsafe", "similarity")
    make(facts, 0)
    np.testing.assert_allclose(facts.column(0, "punsafe"), [0, 0.01, 0.02, 0.03, 0.04])
    assert facts.column(0, "similarity")[0] == 0.0, "of the samples' JSON, as the ledger lacks it"


def test_numbers_may_be_text_and_what_is_none_is_nan(dataset):
    (dataset / "ledger").mkdir()
    table = {"row": range(5), "a": ["0.5", "n/a", "", None, "1e999"], "b": [[1]] * 5}
    pq.write_table(pa.table(table), dataset / "ledger" / "000000.parquet")
    facts = facts_of(dataset, "a", "b")
    make(facts, 0)
    np.testing.assert_array_equal(facts.column(0, "a"), [0.5, np.nan, np.nan, np.nan, np.inf])
    assert np.isnan(facts.column(0, "b")).all()


@pytest.mark.parametrize("told", ['{"x": 1' + "0" * 400 + "}", "[" * 100_000, '{"x": {}}', '"x"'])
def test_odd_json_holds_no_number_and_costs_nothing_else(tmp_path, told):
    sample = {"jpg": jpeg(), "txt": b"a", "json": told.encode()}
    write_dataset(tmp_path / "data", [1], lambda row: sample)
    facts = facts_of(tmp_path / "data", "x")
    make(facts, 0)
    assert np.isnan(facts.column(0, "x")).all() and facts.open(0)["readable"].all()


def test_a_ledger_that_lacks_rows_of_the_index_is_refused(dataset):
    (dataset / "ledger").mkdir()
    pq.write_table(
        pa.table({"row": [0, 1, 3, 4], "x": [0.0] * 4}), dataset / "ledger" / "000000.parquet"
    )
    with pytest.raises(ValueError, match="ledger/000000.parquet lacks row 2"):
        make(facts_of(dataset, "x"), 0)


def test_the_ledger_of_a_folder_that_was_indexed_again_counts_other_rows(dataset):
    (dataset / "ledger").mkdir()
    pq.write_table(
        pa.table({"row": range(5), "x": [0.0] * 5}), dataset / "ledger" / "000000.parquet"
    )
    index_folder(str(dataset / "shards"), dataset, workers=1, again=True)
    facts = facts_of(dataset, "x", "similarity")
    make(facts, 0)
    assert np.isnan(facts.column(0, "x")).all() and facts.column(0, "similarity")[0] == 0.0


def test_they_are_made_again_for_a_column_alone(dataset):
    make(facts_of(dataset), 0)
    assert facts_of(dataset).is_there(0) and not facts_of(dataset).is_there(2)
    assert not facts_of(dataset, "similarity").is_there(0)
    make(facts_of(dataset, "similarity"), 0)
    assert facts_of(dataset, "similarity").is_there(0) and facts_of(dataset).is_there(0)
    make(facts_of(dataset, "other"), 0)
    assert facts_of(dataset, "similarity", "other").is_there(0), "and those it had stay"


def test_a_tar_that_was_cut_off_is_no_unreadable_sample(dataset):
    tar = dataset / "shards" / "000002.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(OSError, match="shards/000002.tar ends before its index does"):
        make(facts_of(dataset), 2)
    assert not facts_of(dataset).is_there(2)


def test_an_index_of_another_dataset_is_refused(dataset):
    other = dataset / "index" / "000002.npy"
    other.write_bytes((dataset / "index" / "000000.npy").read_bytes())
    with pytest.raises(OSError, match="index/000002.npy is not the index that the manifest names"):
        make(facts_of(dataset), 2)
