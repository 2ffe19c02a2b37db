import asyncio
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep.config import DownloadConfig
from data_prep.errors import ConfigError
from data_prep.examples import openclipart
from data_prep.examples.openclipart import (
    OpenClipartWeb,
    Work,
    build_openclipart_table,
    make_caption,
    read_work,
)
from data_prep.fetch.client import Fetcher
from data_prep.schema import Status

installed = pytest.mark.skipif(
    not (openclipart.CLIPART / "svg").exists() or not openclipart.NGINX.exists(),
    reason="needs the system packages of .ci/system-packages",
)

SVG = """<svg xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>
<rdf:RDF><cc:Work><dc:title>Old  cat</dc:title><dc:description>&lt;b&gt;Sleeps.&lt;/b&gt;
</dc:description><dc:subject><rdf:Bag><rdf:li>Cat</rdf:li><rdf:li>cat</rdf:li><rdf:li/>
<rdf:li>pet</rdf:li></rdf:Bag></dc:subject><dc:creator><cc:Agent><dc:title>Ann</dc:title></cc:Agent>
</dc:creator><cc:license rdf:resource="PD"/></cc:Work></rdf:RDF></metadata><broken"""


def test_the_rdf_is_read_even_when_the_drawing_is_broken(tmp_path):
    (tmp_path / "a.svg").write_text(SVG)
    work = read_work(tmp_path / "a.svg")
    assert work == Work("Old cat", "Sleeps", ("cat", "pet"), "Ann", "PD")
    assert make_caption(work, Path("x/a.png")) == "Old cat. Sleeps (keywords: cat, pet)"


def test_without_rdf_the_file_name_is_the_caption(tmp_path):
    assert read_work(tmp_path / "missing.svg") == Work()
    assert make_caption(Work(), Path("food/red_apple-02.png")) == "red apple 02"
    assert make_caption(Work(title="Untitled"), Path("food/___.png")) == "food"


def test_long_captions_end_at_a_word():
    caption = make_caption(Work("cat", "word " * 100), Path("a.png"))
    assert len(caption) <= 300 and caption.endswith("word")


@installed
def test_every_png_is_a_row(tmp_path):
    table = pq.read_table(build_openclipart_table(tmp_path, "http://127.0.0.1:1/"))
    assert table.num_rows == 8121
    assert len(set(table["url"].to_pylist())) == 8121
    assert all(0 < len(c) <= 300 for c in table["caption"].to_pylist())


async def _fetch_all(urls):
    async with Fetcher(DownloadConfig(allow_private_hosts=["127.0.0.1"])) as fetcher:
        return [await fetcher.fetch(url) for url in urls]


@installed
def test_nginx_serves_the_rows(tmp_path):
    web = OpenClipartWeb(tmp_path / "nginx")
    table = pq.read_table(build_openclipart_table(tmp_path, web.base_url, limit=20))
    assert table.num_rows == 20
    with web:
        fetched = asyncio.run(_fetch_all(table["url"].to_pylist()))
    assert {f.status for f in fetched} == {Status.OK}
    assert all(f.body.startswith(b"\x89PNG") for f in fetched)
    assert web._process is None


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(openclipart, "CLIPART", tmp_path / "no")
    with pytest.raises(ConfigError, match="openclipart-png must be installed") as caught:
        build_openclipart_table(tmp_path, "http://x")
    assert caught.value.problems[0].remedy == "run .ci/system-packages"
    monkeypatch.setattr(openclipart, "NGINX", tmp_path / "no")
    with pytest.raises(ConfigError, match="nginx-light must be installed"):
        OpenClipartWeb(tmp_path).__enter__()
