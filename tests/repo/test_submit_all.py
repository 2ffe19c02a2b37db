"""What submit_all.sh submits: sbatch is a stand-in; tests/cluster does it on a real SLURM."""

import os
import subprocess
import sys

import pytest

from tests.helpers.bench import REPOSITORY, SLURM, Bench

SBATCH = """#!/usr/bin/env bash
printf '%s|' "$@" >>"$NOTES/sbatch.notes"
echo >>"$NOTES/sbatch.notes"
[[ " $* " != *"/$REFUSED.sh "* ]] || exit 1
echo "$((100 + $(wc -l <"$NOTES/sbatch.notes")));cluster"
"""
SCANCEL = """#!/usr/bin/env bash
echo "$*" >>"$NOTES/scancel.notes"
"""


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    bench.install("sbatch", SBATCH)
    bench.install("scancel", SCANCEL)
    return bench


def submit(bench, *arguments: str, **environment: str):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "ROSEATE"))}
    clean |= {"PATH": f"{bench.folder}:{os.environ['PATH']}", "NOTES": str(bench.folder)}
    clean |= {"ROSEATE_PYTHON": sys.executable}
    return subprocess.run(
        [SLURM / "submit_all.sh", *arguments],
        cwd=bench.folder,
        env=clean | environment,
        capture_output=True,
        text=True,
    )


def after(job: int) -> list[str]:
    return [f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes"]


def submitted(bench) -> list[list[str]]:
    return [line.split("|")[:-1] for line in bench.notes("sbatch")]


def script(stage: str) -> str:
    return str(REPOSITORY / "slurm" / f"{stage}.sh")


def test_every_job_waits_for_the_one_before(bench):
    done = submit(bench, "demo", "name=two words", "optim.lr=1e-3")
    assert done.returncode == 0, done.stderr
    run = ["demo", "name=two words", "optim.lr=1e-3"]
    assert submitted(bench) == [
        ["--parsable", script("ingest"), *run],
        ["--parsable", *after(101), script("pretrain"), *run],
        ["--parsable", *after(102), script("evaluate"), *run],
    ]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows == [
        ["stage", "job", "after"],
        ["ingest", "101", "-"],
        ["pretrain", "102", "101"],
        ["evaluate", "103", "102"],
    ]


def test_all_stages_with_options_of_their_own(bench):
    own = bench.folder / "select.sh"
    own.touch()
    nodes = ("--sbatch", "pretrain=--nodes=4 --gpus-per-node=8", "--sbatch", "pretrain=--mem=0")
    done = submit(bench, f"--curate={own}", "--features", "--array=0-9%3", *nodes, "demo")
    assert done.returncode == 0, done.stderr
    assert submitted(bench) == [
        ["--parsable", "--array=0-9%3", script("ingest"), "demo"],
        ["--parsable", *after(101), str(own), "demo"],
        ["--parsable", *after(102), script("features"), "demo"],
        ["--parsable", "--nodes=4", "--gpus-per-node=8", "--mem=0", *after(103)]
        + [script("pretrain"), "demo"],
        ["--parsable", *after(104), script("evaluate"), "demo"],
    ]


def test_array_counts_the_sources(bench):
    assert submit(bench, "--array", "--until", "ingest", "demo").returncode == 0
    assert submitted(bench) == [["--parsable", "--array=0-2", script("ingest"), "demo"]]


def test_mistakes_in_the_config_are_told_before_anything_is_submitted(bench):
    done = submit(bench, "--array", "demo", "optim.lrr=1")
    assert done.returncode == 2
    assert "optim.lrr" in done.stderr
    assert "--array: no sources in ingest.sources of demo; see above" in done.stderr
    assert submitted(bench) == []


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (["--from", "pretrain"], ["pretrain", "evaluate"]),
        (["--until", "pretrain"], ["ingest", "pretrain"]),
        (["--from", "features", "--until", "pretrain"], ["pretrain"]),
        (["--curate", "--until", "pretrain"], ["ingest", "curate", "pretrain"]),
        (["--features", "--from", "features", "--until", "features"], ["features"]),
    ],
)
def test_only_some_stages(bench, options, stages):
    assert submit(bench, *options, "demo").returncode == 0
    assert [command[-2] for command in submitted(bench)] == [script(stage) for stage in stages]
    assert not submitted(bench)[0][1].startswith("--dependency")


def test_dry_run_submits_nothing(bench):
    done = submit(bench, "--dry-run", "--from", "pretrain", "demo", "name=a b")
    assert done.returncode == 0
    assert submitted(bench) == []
    first, second = done.stdout.splitlines()
    assert first.split() == ["sbatch", "--parsable", script("pretrain"), "demo", "name=a\\", "b"]
    assert "--dependency=afterok:PRETRAIN --kill-on-invalid-dep=yes" in second


def test_refused_job_takes_the_others_back(bench):
    done = submit(bench, "demo", REFUSED="evaluate")
    assert done.returncode == 2
    assert "sbatch refused evaluate; taken back: 101 102" in done.stderr
    assert bench.notes("scancel") == ["101 102"]
    done = submit(bench, "demo", REFUSED="ingest")
    assert "sbatch refused ingest; taken back: nothing was submitted" in done.stderr


def test_help_has_examples(bench):
    done = submit(bench, "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout and "--from STAGE" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which run? slurm/submit_all.sh [OPTION ...] CONFIG"),
        (["--from"], "--from wants a value, see --help"),
        (["--from", "train", "demo"], "--from: there is no stage 'train'; name one of: ingest"),
        (["--sbatch", "--mem=0", "demo"], "--sbatch: there is no stage '--mem'; name one of:"),
        (["--sbatch", "x", "demo"], "--sbatch: 'x' is not STAGE=OPTIONS"),
        (["--curate=/nonexistent", "demo"], "--curate: there is no file /nonexistent"),
        (["--fast", "demo"], "--fast is no option of this script"),
        (
            ["--from", "pretrain", "--until", "ingest", "demo"],
            "no stage is left from 'pretrain' until 'ingest'",
        ),
        (["--from", "curate", "--until", "curate", "demo"], "curate wants --curate"),
    ],
)
def test_mistakes_are_said_so(bench, arguments, message):
    done = submit(bench, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert submitted(bench) == []
