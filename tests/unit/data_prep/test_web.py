import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from data_prep.examples.web import SceneWeb, wait_until_answers


def test_it_serves_only_its_folder_and_ends_with_the_context(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("inside")
    (tmp_path / "secret.txt").write_text("outside")
    with SceneWeb(tmp_path / "in") as web:
        assert urllib.request.urlopen(f"{web.base_url}/a.txt").read() == b"inside"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{web.base_url}/%2e%2e/secret.txt")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(web.base_url, timeout=1)


def test_a_server_that_ends_at_once_is_reported():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait()
    with pytest.raises(RuntimeError, match="ended at once with exit code 3"):
        wait_until_answers("http://127.0.0.1:9", process)


def test_a_server_that_does_not_answer_is_reported():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        with pytest.raises(RuntimeError, match="did not answer at http://127.0.0.1:9 in 0 seconds"):
            wait_until_answers("http://127.0.0.1:9", process, seconds=0.2)
    finally:
        process.kill()
        process.wait()
