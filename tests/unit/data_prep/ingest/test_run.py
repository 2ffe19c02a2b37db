"""Whole ingests through a real Ray from a web on loopback, to a disk and to a store."""

import hashlib
import random
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from data_prep.config import IngestConfig
from data_prep.errors import ConfigError, IngestError
from data_prep.ingest import cluster, run
from data_prep.ingest.commit import STAGING
from data_prep.ingest.run import run_ingest
from data_prep.ingest.status import read_status
from data_prep.plan import PLAN_NAME
from data_prep.schema import load_manifest
from data_prep.storage import Folder
from tests.helpers.ingests import files_of
from tests.helpers.s3 import s3_bucket


@pytest.fixture(scope="module")
def ray_session():
    """One local Ray for the module; run_ingest uses it and leaves it running."""
    with s3_bucket() as bucket, cluster.importable_by_workers():  # workers know the store, too
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100_000_000,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield bucket
        ray.shutdown()


def changed(config, **changes):
    return IngestConfig.model_validate(config.model_dump() | changes)


def tree(folder):
    """All files but the plan, which notes when a table was last looked at."""
    files = (p for p in Path(folder).rglob("*") if p.is_file() and p.name != PLAN_NAME)
    return {p: p.read_bytes() for p in files}


def test_it_starts_and_ends_its_own_ray_and_ends_as_the_web_was_built(scene_web, ingest_config):
    seen = []
    summary = run_ingest(ingest_config, silent=True, on_figures=seen.append)
    assert not ray.is_initialized()
    result = summary["sources"]
    assert {name: r["statuses"] for name, r in result.items()} == scene_web.expected
    for name, r in result.items():
        manifest = load_manifest(Path(r["folder"]), name)
        assert manifest.rows == r["rows"] == sum(manifest.statuses.values())
        assert manifest.samples == r["ok"] == scene_web.expected[name]["ok"]
        assert manifest.fingerprint == r["fingerprint"]
        for shard in manifest.shards:
            data = (Path(r["folder"]) / "shards" / f"{shard.name}.tar").read_bytes()
            assert hashlib.sha256(data).hexdigest() == shard.sha256
        page = (Path(r["folder"]) / "report.html").read_text()
        assert page.count("<img") == min(24, manifest.shards[0].samples)
    assert seen[-1].ended == seen[-1].rows == sum(r["rows"] for r in result.values())
    assert summary["images_per_second"] > 0
    assert all(source.adds_up and source.complete for source in read_status(ingest_config.output))

    # Nothing is left to do: no Ray, and not a byte changes.
    before = tree(ingest_config.output)
    again = run_ingest(ingest_config, silent=True)["sources"]
    assert all(r["resumed_shards"] == r["shards"] for r in again.values())
    assert tree(ingest_config.output) == before


def test_cut_into_parts_or_whole_the_tars_are_the_same(ray_session, ingest_config):
    """Of one shard two workers make four parts; of small shards each is made whole."""
    laion = {"laion": ingest_config.sources["laion"].model_dump()}
    tars = []
    for name, workers in (("whole", 1), ("parts", 2)):
        config = changed(
            ingest_config,
            output=f"{ingest_config.output}/{name}",
            sources=laion,
            shard_rows=180,
            ray={"num_workers": workers},
        )
        run_ingest(config, silent=True)
        tars.append(files_of(f"{config.output}/laion", ".tar"))
        assert not (Path(config.output) / "laion" / "parts").exists() or not [
            *(Path(config.output) / "laion" / "parts").iterdir()
        ]
    assert tars[0] == tars[1] and len(tars[0]) == 1


def test_a_store_gets_the_same_bytes_as_a_disk(ray_session, ingest_config):
    config = changed(ingest_config, output=f"{ray_session.url}/data")
    on_store = run_ingest(config, silent=True)["sources"]
    on_disk = run_ingest(ingest_config, silent=True)["sources"]
    for name, result in on_store.items():
        other = on_disk[name]
        assert files_of(result["folder"], ".tar") == files_of(other["folder"], ".tar")
        assert files_of(result["folder"], ".npy") == files_of(other["folder"], ".npy")
        assert result["fingerprint"] == other["fingerprint"]
    folder = Folder(f"{config.output}/laion", "x")
    folder.remove("ledger/000001.parquet")
    again = run_ingest(config, silent=True, only="laion")["sources"]["laion"]
    assert again["resumed_shards"] == again["shards"] - 1
    assert again["fingerprint"] == on_disk["laion"]["fingerprint"]


def test_a_shard_that_lost_its_ledger_is_made_again_and_strays_are_cleared(
    ray_session, ingest_config
):
    first = run_ingest(ingest_config, silent=True, only="laion")["sources"]["laion"]
    laion = Path(first["folder"])
    before = tree(laion / "shards")
    stray = laion / STAGING / "000001-whole.0" / "samples"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"left by a killed worker")
    (laion / "ledger" / "000001.parquet").unlink()
    again = run_ingest(ingest_config, silent=True, only="laion")["sources"]
    assert ray.is_initialized()  # what it found running goes on
    assert [*again] == ["laion"]
    assert again["laion"]["resumed_shards"] == again["laion"]["shards"] - 1
    assert tree(laion / "shards") == before
    assert not stray.exists()


def test_rows_that_failed_in_passing_are_gone_over_again_alone(
    ray_session, scene_web, ingest_config, tmp_path
):
    """Each of these fails twice; three passes of one try each find them all."""
    number = random.randrange(10**9)
    urls = [f"{scene_web.base_url}/flaky/held_out/{i:06d}.jpg?{number}" for i in range(20)]
    table = tmp_path / "flaky.tsv"
    table.write_text("".join(f"{url}\tscene {i}\n" for i, url in enumerate(urls)))
    download = ingest_config.download.model_dump()
    download |= {"retries": 0, "passes": 2, "pass_wait_seconds": 0.1}
    sources = {"flaky": {"table": str(table), "layout": "cc12m"}}
    config = changed(ingest_config, sources=sources, download=download)
    first = run_ingest(config, silent=True)["sources"]["flaky"]
    assert first["statuses"] == {"http_error": 20}
    (status,) = read_status(first["folder"])
    assert status.transient == 20 and status.adds_up

    # One pass more, asked for later, is another run; it needs nothing but the setting.
    config = changed(config, download=download | {"passes": 3})
    again = run_ingest(config, silent=True)["sources"]["flaky"]
    assert again["statuses"] == {"ok": 20} and again["resumed_shards"] == 0
    ledger = pq.read_table(Path(again["folder"]) / "ledger" / "000000.parquet")
    assert not any(ledger["transient"].to_pylist())


def test_another_policy_is_refused_before_anything_is_touched(ray_session, ingest_config):
    run_ingest(ingest_config, silent=True, only="held_out")
    before = tree(ingest_config.output)
    other = changed(ingest_config, shard_rows=50)
    with pytest.raises(ConfigError) as refused:
        run_ingest(other, silent=True, only="held_out")
    assert "shard_rows" in str(refused.value)
    assert tree(ingest_config.output) == before


def explode(job, tally):
    raise RuntimeError("disk on fire")


def test_rows_of_a_job_that_always_fails_are_accounted_for(ray_session, ingest_config, monkeypatch):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(cluster, "_run", explode)
    result = run_ingest(ingest_config, silent=True, only="held_out")["sources"]["held_out"]
    assert result["statuses"] == {"internal_error": 20}
    folder = Path(result["folder"])
    ledger = pq.read_table(folder / "ledger" / "000000.parquet")
    assert set(ledger["error"].to_pylist()) == {"RuntimeError: disk on fire"}
    monkeypatch.undo()
    result = run_ingest(ingest_config, silent=True, only="held_out")["sources"]["held_out"]
    assert result["statuses"] == {"ok": 20}


def test_where_nothing_succeeds_the_ingest_stops_and_says_why(
    ray_session, ingest_config, monkeypatch
):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(cluster, "_run", explode)
    monkeypatch.setattr(run, "_FAILURES_IN_A_ROW", 8)
    config = changed(ingest_config, shard_rows=10)
    with pytest.raises(IngestError, match="8 tasks have failed in a row.*disk on fire"):
        run_ingest(config, silent=True, only="laion")
    (status,) = read_status(f"{config.output}/laion")
    assert not status.complete


def test_a_table_that_changes_under_way_stops_the_ingest(ray_session, ingest_config, tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("".join(f"http://127.0.0.1:9/{i}\tcaption\n" for i in range(50)))
    sources = {"t": {"table": str(table), "layout": "cc12m"}}
    config = changed(ingest_config, sources=sources)
    original = run._prepare

    def prepare(source):
        original(source)
        table.write_text(table.read_text().replace("caption", "CAPTION"))

    run._prepare = prepare
    try:
        with pytest.raises(ConfigError, match="must stay as it is while it is ingested") as caught:
            run_ingest(config, silent=True)
    finally:
        run._prepare = original
    assert caught.value.problems[0].key == "ingest.sources.t.table"
    assert not (Path(config.output) / "t" / "manifest.json").exists()


def test_files_added_later_extend_the_folder(ray_session, scene_web, ingest_config, tmp_path):
    (tmp_path / "tables").mkdir()
    rows = pq.read_table(scene_web.folder / "held_out.parquet")
    pq.write_table(rows.slice(0, 12), tmp_path / "tables" / "b.parquet")
    sources = {"t": {"table": str(tmp_path / "tables")}}
    config = changed(ingest_config, sources=sources, shard_rows=5)
    first = run_ingest(config, silent=True)["sources"]["t"]
    before = tree(Path(first["folder"]) / "shards")
    pq.write_table(rows.slice(12), tmp_path / "tables" / "a.parquet")
    second = run_ingest(config, silent=True)["sources"]["t"]
    assert (first["rows"], second["rows"]) == (12, 20)
    assert second["resumed_shards"] == first["shards"] == 3
    after = tree(Path(first["folder"]) / "shards")
    assert {path: after[path] for path in before} == before and len(after) == 5
    manifest = load_manifest(Path(second["folder"]), "x")
    assert manifest.samples == second["ok"] == 20


def test_all_problems_are_reported_at_once(ingest_config):
    sources = {"a": {"table": "/nowhere/a.tsv"}, "b": {"table": "/nowhere/b.csv"}}
    config = changed(ingest_config, sources=sources)
    with pytest.raises(ConfigError, match="2 problems") as caught:
        run_ingest(config)
    keys = [p.key for p in caught.value.problems]
    assert keys == ["ingest.sources.a.table", "ingest.sources.b.table"]
    assert not Path(config.output).exists()


@pytest.mark.parametrize("place", ["file", "s3://there-is-no-such-bucket/data"])
def test_a_place_that_cannot_be_written_is_refused(ray_session, ingest_config, tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    output = place if "://" in place else str(tmp_path / place)
    with pytest.raises(ConfigError, match="must be a place that can be written") as caught:
        run_ingest(changed(ingest_config, output=output), silent=True, only="held_out")
    assert caught.value.problems[0].key == "ingest.output"


def test_a_disk_that_fails_at_the_end_is_told_as_such(ray_session, ingest_config, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(run, "write_report", full)
    with pytest.raises(IngestError, match="no space left on device. What is committed stays"):
        run_ingest(ingest_config, silent=True, only="held_out")
    monkeypatch.undo()
    again = run_ingest(ingest_config, silent=True, only="held_out")["sources"]["held_out"]
    assert again["resumed_shards"] == again["shards"] == 1


def test_an_unknown_source_is_refused(ingest_config):
    with pytest.raises(ConfigError, match="must be one of: laion, cc12m, held_out"):
        run_ingest(ingest_config, only="coco")


def test_no_sources_are_refused(ingest_config):
    config = ingest_config.model_copy(update={"sources": {}})
    with pytest.raises(ConfigError, match="needs at least one source"):
        run_ingest(config)
