import pytest

from data_prep.ingest.commit import SIZE_EDGES, commit, shard_place, staging
from data_prep.ingest.piece import PieceWriter
from data_prep.outcome import Outcome
from data_prep.report import REPORT_NAME, write_report
from data_prep.schema import Manifest, Status
from data_prep.storage import Folder
from tests.helpers.pieces import make_rows
from tests.helpers.s3 import s3_bucket


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    if request.param == "disk":
        yield Folder(str(tmp_path), "ingest.output")
    else:
        with s3_bucket() as bucket:
            yield Folder(f"{bucket.url}/data", "ingest.output")


def page_of(folder, caption, *outcomes):
    rows = make_rows(0, len(outcomes)).drop_columns("caption")
    rows = rows.append_column("caption", [[caption] * len(outcomes)])
    with staging(folder, "x") as prepared:
        writer = PieceWriter(rows, prepared / "samples")
        for i, outcome in enumerate(outcomes):
            writer.put(i, outcome)
        pieces, place = [writer.finish()], shard_place("000000")
        done = commit(folder, place, pieces, prepared, name="000000", plan="p")
    manifest = Manifest(
        source="a<b",
        input_fingerprint="i",
        policy_hash="p",
        rows=done.entry.rows,
        samples=done.entry.samples,
        statuses=done.statuses,
        shards=[done.entry],
    )
    write_report(folder, manifest, done.sizes)
    return folder.read(REPORT_NAME).decode()


def ok(side):
    return Outcome(
        Status.OK,
        data=b"picture",
        format="jpg",
        width=8,
        height=8,
        original_width=3,
        original_height=side,
    )


def test_the_page_is_self_contained_and_escapes_captions(folder):
    failed = Outcome(Status.MISSING_URL, "the row has no url")
    page = page_of(folder, "<script>x</script>", ok(64), failed, ok(65), ok(SIZE_EDGES[-1] + 1))
    assert "<script" not in page and "&lt;script&gt;" in page and "a&lt;b" in page
    assert "missing_url" in page
    assert all(label in page for label in ("up to 64", "up to 128", f"over {SIZE_EDGES[-1]}"))
    assert page.count("src='data:image/jpeg;base64,cGljdHVyZQ=='") == 3
    assert "http" not in page.split("<h2>First")[0]


def test_a_folder_without_samples_has_a_page_too(folder):
    page = page_of(folder, "a cat", Outcome(Status.INTERNAL_ERROR, "worker died"))
    assert "internal_error" in page and "None." in page
