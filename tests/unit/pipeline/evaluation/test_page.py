"""The page of an evaluation, opened in a real browser; its figures are computed, not made up."""

import html
import http.server
import os
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from data_prep.examples.scenes import make_held_out_scene, render
from pipeline.evaluation.metrics.bootstrap import Interval, interval, paired_interval
from pipeline.evaluation.metrics.captioning import caption_scores
from pipeline.evaluation.metrics.perplexity import perplexity
from pipeline.evaluation.page import write_results_page
from pipeline.evaluation.results import CheckpointIdentity, DataIdentity, Figure, Results, Row
from pipeline.evaluation.sample_cards import SAMPLES

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="needs chromium, see .ci/system-packages"
)
# What a browser asks its maker for, whatever page it shows.
CHROMIUMS_OWN = re.compile(r"(google|gstatic|googleapis|gvt1)\.com")
CHECKPOINT = CheckpointIdentity(
    path="runs/<b>/flamingo", run="flamingo", step=1500, run_id="abc123"
)


@dataclass(frozen=True)
class SceneImage:
    number: int
    broken: bool = False

    @property
    def name(self) -> str:
        return f"scene {self.number}.jpg"

    def open(self) -> bytes:
        if self.broken:
            raise OSError("the disk is gone")
        buffer = BytesIO()
        render(make_held_out_scene(self.number)).save(buffer, "JPEG")
        return buffer.getvalue()


def example(count: int = 40):
    """Captions of scenes by someone who sees most of them, and by someone who sees none."""
    random = np.random.default_rng(5)
    truth = [make_held_out_scene(i).caption for i in range(count)]
    seen = [t if random.random() < 0.6 else truth[int(random.integers(count))] for t in truth]
    blind = [truth[0]] * count
    seen[1], seen[2] = "", "<script>fetch('http://127.0.0.1:PORT/said')</script>"
    references = [[t, t.replace("a ", "the ")] for t in truth]
    figures, by_condition = [], {}
    for condition, said in (("", seen), ("zero_image", blind)):
        by_condition[condition] = caption_scores(said, references)
        for name, score in by_condition[condition].items():
            figures.append(Figure.of(name, interval(score), count, condition))
    for name, score in by_condition[""].items():
        difference = paired_interval(score, by_condition["zero_image"][name])
        figures.append(Figure.of(name, difference, count, "minus_zero_image"))
    nats = perplexity(random.gamma(2, 10, count), np.full(count, 12))
    figures.append(Figure.of("perplexity", interval(nats), count))
    rows = [
        Row(
            key=f"held_out/{i:03d}",
            image=SceneImage(i).name,
            truth=references[i],
            said={"": seen[i], "zero_image": blind[i]},
            scores={
                "cider_d": by_condition[""]["cider_d"].per_sample[i],
                "cider_d_zero_image": by_condition["zero_image"]["cider_d"].per_sample[i],
                "perplexity": nats.per_sample[i],
            },
        )
        for i in range(count)
    ]
    data = DataIdentity(
        layout="coco",
        path="images",
        annotations="captions_val2014.json",
        fingerprint="0123456789abcdef",
        counts={"found": count + 1, "missing_images": 1, "limited": 0, "kept": count},
        missing=["COCO_val2014_000000000007.jpg"],
    )
    results = Results(
        suite="captioning",
        checkpoint=CHECKPOINT,
        data=data,
        settings={"max_new_tokens": 24, "prompt": "<image>"},
        figures=figures,
        rows=rows,
        hard_by="perplexity",
        notes=["Greedy decoding."],
        seconds=12.34,
    )
    images = {row.key: SceneImage(i, broken=i == 1) for i, row in enumerate(rows) if i != 4}
    return results, images


def opened(path: Path, *options: str) -> str:
    """The document that a browser makes of a page."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *options]
    command += [f"--user-data-dir={path.parent}/profile", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@contextmanager
def asked():
    """A server of this machine that notes what it is asked for, as a proxy too; its port, the notes."""
    seen: list[str] = []

    class Note(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            seen.append(self.path)
            self.send_error(404)

        do_CONNECT = do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Note)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_results_page(tmp_path_factory.mktemp("page") / "results.html", [example()])


@needs_browser
def test_browser_shows_everything_and_asks_nobody(page):
    with asked() as (port, seen):
        page.write_text(page.read_text().replace("PORT", str(port)))
        quiet = ["--disable-background-networking", "--disable-component-update"]
        proxy = [f"--proxy-server=http://127.0.0.1:{port}", "--proxy-bypass-list=<-loopback>"]
        dom = opened(page, *quiet, *proxy)
        assert [url for url in seen if not CHROMIUMS_OWN.search(url)] == []
        # That nothing was seen is worth something only if something would have been.
        control = page.with_name("control.html")
        control.write_text(page.read_text() + f"<img src='http://127.0.0.1:{port}/seen'>")
        opened(control, *quiet, *proxy)
        assert any(url.endswith("/seen") for url in seen)
    text = html.unescape(
        re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", dom, flags=re.S))
    )
    text = " ".join(text.split())
    results, _ = example()
    for wanted in (
        "Evaluation of flamingo at step 1,500",
        "runs/<b>/flamingo",
        "MLflow run abc123",
        "captions_val2014.json (coco): 41 found, 1 missing images, 40 kept",
        "Not everything was there",
        "COCO_val2014_000000000007.jpg",
        "Greedy decoding.",
        "CIDEr-D",
        "BLEU-4",
        "with its image image zeroed difference to image zeroed",
        "Hardest samples",
        "Most wrong",
        "Misled by the image",
        "cannot be shown OSError: the disk is gone",
        "no picture",
        "nothing",
        "<script>fetch('http://127.0.0.1:",
        "max_new_tokens",
        "0123456789abcdef",
    ):
        assert wanted in text, wanted
    for figure in results.figures[:6]:
        assert f"{figure.value:.3f}" in text and f"[{figure.low:.3f}, {figure.high:.3f}]" in text
    assert dom.count("data:image/jpeg") > 20 and "<script" not in dom


@needs_browser
def test_pictures_are_decoded_by_the_browser(page):
    marked = page.read_text() + (
        "<script>window.onload = () => { for (const i of document.images) "
        "i.setAttribute('seen', i.naturalWidth) }</script>"
    )
    copy = page.with_name("marked.html")
    copy.write_text(marked)
    widths = re.findall(r'seen="(\d+)"', opened(copy, "--virtual-time-budget=5000"))
    assert len(widths) > 20 and set(map(int, widths)) <= set(range(16, 241))


def test_page_holds_no_address_but_data_and_its_own_places():
    with TemporaryDirectory() as folder:
        suites = [example(), (example()[0].model_copy(update={"suite": "vqa"}), {})]
        text = write_results_page(Path(folder) / "page.html", suites).read_text()
    targets = re.findall(r"""(?:src|href|url|action)\s*[=(]\s*['"]?([^'">)\s]+)""", text)
    assert {t for t in targets if not t.startswith("data:image/jpeg;base64,")} == {"#0", "#1"}
    assert text.count("<h2 id='") == 2 and "@import" not in text


def test_rows_are_chosen_by_what_they_are_called(page):
    results, _ = example()
    sections = re.split(r"<h3>", page.read_text())[1:]
    keys = {s.split("<")[0]: re.findall(r"<code>(held_out/\d+)", s) for s in sections}
    by = {row.key: row.scores for row in results.rows}
    wrong = [by[k]["cider_d"] for k in keys["Most wrong"]]
    assert wrong == sorted(s["cider_d"] for s in by.values())[:SAMPLES]
    hard = [by[k]["perplexity"] for k in keys["Hardest samples"]]
    assert hard == sorted((s["perplexity"] for s in by.values()), reverse=True)[:SAMPLES]
    misled = {k for k, s in by.items() if s["cider_d"] < s["cider_d_zero_image"]}
    assert misled >= set(keys["Misled by the image"]) and len(keys["Misled by the image"]) == min(
        len(misled), SAMPLES
    )


def test_a_figure_that_is_worse_when_lower_turns_the_order(tmp_path):
    results, images = example()
    turned = results.model_copy(update={"wrong_by": "perplexity", "hard_by": ""})
    page = write_results_page(tmp_path / "page.html", [(turned, images)]).read_text()
    assert "Highest Perplexity; each sample by itself" in page and "Hardest samples" not in page
    keys = re.findall(r"<code>(held_out/\d+)", page)
    worst = max(results.rows, key=lambda row: row.scores["perplexity"])
    assert keys[0] == worst.key


def test_differences_are_coloured_when_sure_alone(tmp_path):
    def shown(low, high, name="cider_d"):
        interval = Interval((low + high) / 2, low, high)
        figure = Figure.of(name, interval, 9, "minus_zero_image")
        results = Results(suite="s", checkpoint=CHECKPOINT, figures=[figure])
        return write_results_page(tmp_path / "page.html", [(results, {})]).read_text()

    assert "<span class='value sure'>+2.000" in shown(1.0, 3.0)
    assert "<span class='value against'>-2.000" in shown(-3.0, -1.0)
    assert "<span class='value'>+1.000" in shown(-1.0, 3.0)
    assert "<span class='value sure'>-2.000" in shown(-3.0, -1.0, "perplexity")


def test_many_conditions_stand_below_each_other_and_answers_are_counted(tmp_path):
    figures = [
        Figure.of(name, Interval(k / 100, 0, 1), 9, f"shots_{k}")
        for k in (0, 1, 4, 8, 16, 32, 64)
        for name in ("vqa_accuracy", "perplexity")
        if (name, k) != ("perplexity", 8)
    ]
    row = Row(
        key="7",
        question="How many?",
        truth=["2"] * 7 + ["two", "3", "3"],
        scores={"vqa_accuracy_shots_32": 0.3},
    )
    results = Results(
        suite="few_shot",
        checkpoint=CHECKPOINT,
        figures=figures,
        rows=[row],
        wrong_by="vqa_accuracy_shots_32",
    )
    page = write_results_page(tmp_path / "page.html", [(results, {})]).read_text()
    rows = page.split("<table class=figures>")[1].split("</table>")[0].split("<tr>")[1:]
    assert len(rows) == 8 and "VQA accuracy" in rows[0] and "Perplexity" in rows[0]
    assert rows[1].startswith("<td>0 examples<td>") and rows[2].startswith("<td>1 example<td>")
    assert "not run" in rows[4] and page.count("not run") == 1
    assert "Lowest VQA accuracy, 32 examples; each sample by itself" in page
    counted = [line.split("<")[0] for line in page.split("<li>")[1:]]
    assert [text.strip() for text in counted] == ["2", "3", "two"]
    assert "&times; 7" in page and "<h2 id='0'>few shot</h2>" in page
    assert "in colour" not in page


def test_arrows_and_order_go_by_the_figure_not_by_its_name(tmp_path):
    figure = Figure(name="latency", value=3.0, samples=2, unit="ms", better="lower")
    rows = [Row(key=f"s{i}", truth=["t"], scores={"latency": float(i)}) for i in range(3)]
    results = Results(suite="speed", checkpoint=CHECKPOINT, figures=[figure], rows=rows)
    page = write_results_page(tmp_path / "page.html", [(results, {})]).read_text()
    assert "latency <span class=meaning>&darr;" in page and "3.000 ms" in page
    assert re.findall(r"<code>(s\d)", page) == ["s2", "s1", "s0"]
    assert "In brackets" not in page and "not run" not in page


def test_no_number_and_no_rows_are_said(tmp_path):
    figure = Figure.of("cider_d", Interval(np.nan, np.nan, np.nan), 0)
    results = Results(suite="s", checkpoint=CHECKPOINT, figures=[figure])
    page = write_results_page(tmp_path / "page.html", [(results, {})]).read_text()
    assert "no number" in page and "<td>value" in page and "Most wrong" not in page
    empty = Results(suite="s", checkpoint=CHECKPOINT, figures=[])
    assert "<h2" in write_results_page(tmp_path / "page.html", [(empty, {})]).read_text()
    with pytest.raises(ValueError, match="at least one suite"):
        write_results_page(tmp_path / "page.html", [])
