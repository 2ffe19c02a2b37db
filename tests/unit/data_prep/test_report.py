from data_prep.report import write_report
from data_prep.schema import Manifest
from data_prep.shards import ShardTask, make_failed_shard, make_shard


def manifest_of(result):
    return Manifest(
        source="a<b",
        input_fingerprint="i",
        policy_hash="p",
        rows=result.entry.rows,
        samples=result.entry.samples,
        statuses=result.statuses,
        shards=[result.entry],
    )


def test_the_page_is_self_contained_and_escapes_captions(scene_web, ingest_config, tmp_path):
    rows = [(f"{scene_web.base_url}/laion/000000.jpg", "<script>x</script>"), (None, "b")]
    result = make_shard(ShardTask(str(tmp_path), "000000", 0, rows, ingest_config, "plan"))
    page = write_report(tmp_path, manifest_of(result)).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "a&lt;b" in page
    assert "missing_url" in page and "up to 64" in page
    assert "src='data:image" in page and "http" not in page.split("<h2>First")[0]


def test_a_folder_without_samples_has_a_page_too(ingest_config, tmp_path):
    task = ShardTask(str(tmp_path), "000000", 0, [("http://a", "b")], ingest_config, "plan")
    page = write_report(tmp_path, manifest_of(make_failed_shard(task, "x"))).read_text()
    assert "internal_error" in page and "None." in page
