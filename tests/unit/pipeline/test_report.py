from PIL import Image

from pipeline.config import load_config
from pipeline.report import headline, where_to_look, write_report

STATUSES = {"ok": 3, "http_404": 1}
SUMMARY = {
    "ingest": {"sources": {"laion": {"rows": 4, "statuses": STATUSES}}},
    "train": {
        "run": "a <run>", "steps": 7, "world_size": 2, "precision": "fp32", "seconds": 3.0,
        "samples_per_second": 12.0, "mlflow_run_id": "abc",
    },
    "evaluate": {"attribute_accuracy": 0.9375, "samples": 8, "mlflow_run_id": "abc"},
    "seconds": 12.345,
}  # fmt: skip


def test_headline_holds_rows_figures_and_the_run():
    assert headline(SUMMARY) == {
        "rows_laion": STATUSES,
        "attribute_accuracy": 0.9375,
        "samples": 8,
        "mlflow_run_id": "abc",
        "seconds": 12.3,
    }


def test_headline_without_an_evaluation():
    found = headline({k: v for k, v in SUMMARY.items() if k not in ("evaluate", "train")})
    assert set(found) == {"rows_laion", "seconds"}


def test_page_has_everything_and_escapes_names(tmp_path):
    config = load_config("demo", [f"root={tmp_path}"])
    Image.new("RGB", (4, 4)).save(tmp_path / "captions.png")
    evaluated = SUMMARY["evaluate"] | {"page": str(tmp_path / "page.html")}
    page = write_report(config, SUMMARY | {"evaluate": evaluated}).read_text()
    for text in ("0.9375", "3 ok, 1 http_404", "a &lt;run&gt;", "abc", "data:image/png;base64"):
        assert text in page, text
    assert "<run>" not in page


def test_page_without_captions_says_so(tmp_path):
    config = load_config("demo", [f"root={tmp_path}"])
    assert "No captions yet." in write_report(config, SUMMARY).read_text()


def test_where_to_look_leaves_mlflow_out_when_it_is_off(tmp_path):
    config = load_config("demo", [f"root={tmp_path}"])
    assert any("mlflow ui" in line for line in where_to_look(config, SUMMARY))
    off = load_config("demo", [f"root={tmp_path}", "tracking.uri="])
    assert not any("mlflow" in line for line in where_to_look(off, SUMMARY))
