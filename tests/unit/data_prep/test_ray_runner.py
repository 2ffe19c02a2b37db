import hashlib
import json
import sys
from pathlib import Path

import pytest
import ray

from data_prep import ray_runner
from data_prep.config import IngestConfig
from data_prep.errors import ConfigError
from data_prep.ray_runner import run_ingest
from data_prep.schema import load_manifest


@pytest.fixture(scope="module")
def ray_session():
    """One local Ray for the module; run_ingest uses it and leaves it running."""
    with ray_runner._importable_by_workers():
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100_000_000,
            log_to_driver=False,
            logging_level="ERROR",
        )
    yield
    ray.shutdown()


def tree(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_a_whole_ingest_ends_as_the_web_was_built_and_resumes(scene_web, ingest_config, request):
    result = run_ingest(ingest_config, progress=False)["sources"]
    assert {name: r["statuses"] for name, r in result.items()} == scene_web.expected
    for name, r in result.items():
        manifest = load_manifest(Path(r["folder"]), name)
        assert manifest.rows == r["rows"] == sum(manifest.statuses.values())
        assert manifest.samples == r["ok"] == scene_web.expected[name]["ok"]
        assert len(manifest.shards) == r["shards"]
        for shard in manifest.shards:
            data = (Path(r["folder"]) / "shards" / f"{shard.name}.tar").read_bytes()
            assert hashlib.sha256(data).hexdigest() == shard.sha256
        page = (Path(r["folder"]) / "report.html").read_text()
        assert page.count("<img") == min(24, manifest.shards[0].samples)
    assert not ray.is_initialized()  # what it started, it shut down

    # One shard loses its ledger: that one is done again, to the same bytes.
    laion = Path(result["laion"]["folder"])
    before = tree(laion / "shards")
    stray = laion / "shards" / "000001.tar.99.part"
    stray.write_bytes(b"left by a killed worker")
    (laion / "ledger" / "000001.parquet").unlink()
    request.getfixturevalue("ray_session")
    again = run_ingest(ingest_config, progress=False, only="laion")["sources"]
    assert ray.is_initialized()  # and what it found running goes on
    assert [*again] == ["laion"]
    assert again["laion"]["resumed_shards"] == again["laion"]["shards"] - 1
    assert again["laion"]["statuses"] == scene_web.expected["laion"]
    assert tree(laion / "shards") == before

    # Another policy, or another table, is refused before anything is touched.
    before = tree(laion)
    changed = ingest_config.model_copy(update={"shard_rows": 50})
    with pytest.raises(ConfigError, match="must be the same as when the folder was begun") as e:
        run_ingest(changed, progress=False)
    assert [p.key for p in e.value.problems] == ["ingest"] * 3
    assert "set another ingest.output" in e.value.problems[0].remedy
    sources = {"laion": {"table": str(scene_web.folder / "held_out.parquet")}}
    changed = IngestConfig(**{**ingest_config.model_dump(), "sources": sources})
    with pytest.raises(ConfigError, match="ingest.sources.laion.table .*\n.*table's contents"):
        run_ingest(changed, progress=False)
    assert tree(laion) == before


def explode(task):
    raise RuntimeError("disk on fire")


def test_rows_of_a_task_that_always_fails_are_accounted_for(
    ray_session, ingest_config, monkeypatch
):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(ray_runner, "make_shard", explode)
    result = run_ingest(ingest_config, progress=False, only="held_out")["sources"]["held_out"]
    assert result["statuses"] == {"internal_error": 20}
    monkeypatch.undo()
    result = run_ingest(ingest_config, progress=False, only="held_out")["sources"]["held_out"]
    assert result["statuses"] == {"ok": 20}


def test_all_problems_are_reported_at_once(ingest_config):
    sources = {"a": {"table": "/nowhere/a.tsv"}, "b": {"table": "/nowhere/b.csv"}}
    config = IngestConfig(**{**ingest_config.model_dump(), "sources": sources})
    with pytest.raises(ConfigError, match="2 problems") as caught:
        run_ingest(config)
    keys = [p.key for p in caught.value.problems]
    assert keys == ["ingest.sources.a.table", "ingest.sources.b.table"]
    assert not Path(config.output).exists()


def test_an_unknown_source_is_refused(ingest_config):
    with pytest.raises(ConfigError, match="must be one of: laion, cc12m, held_out"):
        run_ingest(ingest_config, only="coco")


def test_no_sources_are_refused(ingest_config):
    config = ingest_config.model_copy(update={"sources": {}})
    with pytest.raises(ConfigError, match="needs at least one source"):
        run_ingest(config)


def test_a_table_that_changed_under_way_is_noticed(ray_session, ingest_config, monkeypatch):
    monkeypatch.setattr(ray_runner.Table, "count", lambda self: 21)
    with pytest.raises(RuntimeError, match="21 rows planned, 20 accounted for"):
        run_ingest(ingest_config, progress=False, only="held_out")
    folder = Path(ingest_config.output) / "held_out"
    assert not (folder / "manifest.json").exists()
    assert json.loads((folder / "plan.json").read_text())["source"] == "held_out"
