import importlib.util
import subprocess
import sys

import pytest

from data_prep.config import IngestConfig
from data_prep.engines import img2dataset_settings
from data_prep.engines.img2dataset_settings import check_settings

HONOURED = {"robots": "ignore", "per_host": 64, "concurrency": 64}


def config_of(download=None, source=None, **sections) -> IngestConfig:
    return IngestConfig(
        output="unused",
        sources={"a": {"table": "unused"} | (source or {})},
        download=HONOURED | {"engine": "img2dataset"} | (download or {}),
        **sections,
    )


def test_what_it_can_honour_has_no_problems():
    assert check_settings(config_of()) == []


@pytest.mark.parametrize(
    ("sections", "key", "rule", "remedy"),
    [
        ({"download": {"robots": "obey"}}, "download.robots", "robots.txt", "robots=ignore"),
        ({"download": {"per_host": 8}}, "download.per_host", "by host", "per_host=64"),
        (
            {"download": {"nameservers": ["192.0.2.53"]}},
            "download.nameservers",
            "system's resolver",
            "nameservers=[]",
        ),
        ({"image": {"mode": "untouched"}}, "image.mode", "decode", "mode=keep_ratio"),
        ({"decode": {"processes": 2}}, "decode.processes", "one thread", "processes=1"),
        ({"source": {"verify": "phash"}}, "sources.a.verify", "whole files", "verify=none"),
    ],
)
def test_what_it_cannot_is_named_with_its_remedy(sections, key, rule, remedy):
    (problem,) = check_settings(config_of(**sections))
    assert problem.key == f"ingest.{key}"
    assert rule in problem.rule and problem.rule.startswith("img2dataset ")
    assert f"ingest.{key.rpartition('.')[0]}.{remedy}" in problem.remedy
    assert "download.engine=roseate" in problem.remedy


def test_all_problems_are_told_at_once_also_that_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(img2dataset_settings, "find_spec", lambda name: None)
    config = config_of({"robots": "obey", "per_host": 1}, decode={"processes": 2})
    problems = check_settings(config)
    assert [p.key.rpartition(".")[2] for p in problems] == [
        "engine",
        "robots",
        "per_host",
        "processes",
    ]
    assert "pip install 'roseate[img2dataset]'" in problems[0].remedy


def test_checking_imports_nothing_of_img2dataset():
    assert importlib.util.find_spec("img2dataset") is not None
    code = (
        "import sys, data_prep.engines.img2dataset_settings\n"
        "print([m for m in ('img2dataset', 'cv2', 'albumentations', 'wandb', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
