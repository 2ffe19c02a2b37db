"""An ingest whose workers and driver are killed at random: the tars are those of an undisturbed one.

ROSEATE_KILLS sets how many (CI: a few; 100 take about a quarter of an hour).
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.examples.tables import build_scene_web
from data_prep.examples.web import SceneWeb
from data_prep.ingest.status import read_status
from data_prep.storage import Folder
from tests.helpers.ingests import IngestProcess, files_of, write_config
from tests.helpers.s3 import s3_bucket

KILLS = int(os.environ.get("ROSEATE_KILLS", "4"))
ROWS = 1200

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600 + 30 * KILLS)]


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """Half of the rows fail the first two times that they are asked for."""
    folder = tmp_path_factory.mktemp("web")
    with SceneWeb(folder) as web:
        web.expected = build_scene_web(
            folder, scenes=ROWS, held_out=1, seed=random.randrange(1000), base_url=web.base_url
        )
        table = folder / "cc12m.tsv"
        plain = f"{web.base_url}/cc12m/"
        table.write_text(table.read_text().replace(plain, plain.replace("/cc12m", "/flaky/cc12m")))
        yield web


def settings(web, output, **download):
    return {
        "output": str(output),
        "shard_rows": 50,
        "image": {"size": 48},
        "sources": {
            name: {"table": str(web.folder / file)}
            for name, file in (("laion", "laion.parquet"), ("cc12m", "cc12m.tsv"))
        },
        "download": {
            "allow_private_hosts": ["127.0.0.1"],
            "concurrency": 2,  # slow enough to be killed in the middle
            "retries": 0,
            "passes": 4,
            "pass_wait_seconds": 0.5,
        }
        | download,
        "ray": {"num_workers": 2, "max_failures": 1000},
    }


@pytest.fixture(scope="module")
def undisturbed(web, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder / "run.yaml", settings(web, folder / "data"))
    ingest = IngestProcess(config, folder / "log")
    assert ingest.driver.wait(300) == 0, (folder / "log").read_text()
    ingest.stop()
    for source in read_status(str(folder / "data")):
        assert source.statuses == web.expected[Path(source.folder).name], errors_of(source.folder)
    return files_of(str(folder / "data"), ".tar")


@pytest.mark.parametrize("place", ["disk", "store"])
def test_killed_at_random_the_tars_are_those_of_an_undisturbed_run(
    web, undisturbed, tmp_path, place, request
):
    if place == "disk":
        output = str(tmp_path / "data")
    else:
        bucket = request.getfixturevalue("bucket")
        output = f"{bucket.url}/data"
    config = write_config(tmp_path / "run.yaml", settings(web, output))
    draw = random.Random()
    log, kills = tmp_path / "log", 0
    ingest = IngestProcess(config, log)
    try:
        while kills < KILLS or ingest.driver.poll() is None:
            if kills == KILLS:
                assert ingest.driver.wait(300) == 0, log.read_text()[-3000:]
                break
            if ingest.driver.poll() is not None:
                # Faster than the kills: begin anew for the rest of them, with shards lost at random.
                assert ingest.driver.returncode == 0, log.read_text()[-3000:]
                ingest.stop()
                lose_some(output, draw)
                ingest = IngestProcess(config, log)
            time.sleep(draw.uniform(0.0, 4.0))
            workers = ingest.workers()
            if workers and draw.random() < 0.7:
                kills += kill(draw.choice(workers))
            elif ingest.driver.poll() is None:
                ingest.kill_driver()
                kills += 1
                ingest.stop()
                ingest = IngestProcess(config, log)
    finally:
        ingest.stop()
    for source in read_status(output, verify=True):
        assert source.adds_up and source.complete
        name = source.folder.rsplit("/", 1)[1]
        assert source.statuses == web.expected[name], errors_of(source.folder)
    tars = files_of(output, ".tar")
    assert tars.keys() == undisturbed.keys()
    assert [name for name in tars if tars[name] != undisturbed[name]] == []
    status = [sys.executable, "-m", "pipeline", "ingest", "status", output]
    told = subprocess.run(status, capture_output=True, text=True)
    assert told.returncode == 0 and told.stdout.count("every row has one status") == 2


@pytest.fixture
def bucket():
    with s3_bucket() as bucket:
        yield bucket


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def errors_of(url: str) -> set[str]:
    ledgers = files_of(url, ".parquet").values()
    return {
        error
        for data in ledgers
        for error in pq.read_table(pa.BufferReader(data))["error"].to_pylist()
    }


def lose_some(output: str, draw: random.Random) -> None:
    folder = Folder(output, "test")
    ledgers = folder.names(".parquet")
    for name in draw.sample(ledgers, len(ledgers) // 2):
        folder.remove(name)
