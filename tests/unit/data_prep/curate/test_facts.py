import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.curate.facts import FactsOf, facts_dtype
from data_prep.curate.looks import look_at
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


def test_facts_are_those_of_the_samples(dataset, samples):
    facts = facts_of(dataset, "similarity", "label")
    assert [facts.make(shard) for shard in range(3)] == SIZES
    found = np.concatenate([facts.open(shard) for shard in range(3)])
    assert found.dtype == facts_dtype(("similarity", "label"))
    assert found["readable"].tolist() == [True, False, *[True] * 6]
    assert found["has_image"].tolist() == [True, False, True, False, *[True] * 4]
    for row in (0, 2, 4, 7):
        members = samples[row]
        texts = [data.decode() for name, data in sorted(members.items()) if "txt" in name]
        (image,) = (data for name, data in members.items() if "jpg" in name)
        look, small = look_at(image)
        assert found["image"][row] == look and np.array_equal(found["miniature"][row], small)
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
    facts.make(0)
    np.testing.assert_allclose(facts.column(0, "punsafe"), [0, 0.01, 0.02, 0.03, 0.04])
    assert facts.column(0, "similarity")[0] == 0.0, "of the samples' JSON, as the ledger lacks it"


def test_they_are_made_again_for_a_column_alone(dataset):
    facts_of(dataset).make(0)
    assert facts_of(dataset).is_there(0) and not facts_of(dataset).is_there(2)
    assert not facts_of(dataset, "similarity").is_there(0)
    facts_of(dataset, "similarity").make(0)
    assert facts_of(dataset, "similarity").is_there(0) and facts_of(dataset).is_there(0)


def test_a_tar_that_was_cut_off_is_no_unreadable_sample(dataset):
    tar = dataset / "shards" / "000002.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(OSError, match="shards/000002.tar ends before its index does"):
        facts_of(dataset).make(2)
    assert not facts_of(dataset).is_there(2)


def test_an_index_of_another_dataset_is_refused(dataset):
    other = dataset / "index" / "000002.npy"
    other.write_bytes((dataset / "index" / "000000.npy").read_bytes())
    with pytest.raises(OSError, match="index/000002.npy of .* is not that of the manifest"):
        facts_of(dataset).make(2)
