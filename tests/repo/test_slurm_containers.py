"""ROSEATE_CONTAINER: the command lines it makes. apptainer is a stand-in that takes notes, pyxis too."""

import os

import pytest

from tests.helpers.bench import APPTAINER, REPOSITORY, Bench


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def mounts(bench) -> list[str]:
    folders = [REPOSITORY, bench.folder / "jobs", bench.folder, "/tmp", "/data:/data:ro", "/towers"]
    return [str(folder) for folder in folders]


ONE_TASK = {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
MORE = {"ROSEATE_CONTAINER_MOUNTS": "/data:/data:ro,/towers,/tmp", "DS_ACCELERATOR": "cpu"}


@pytest.mark.parametrize("image", ["images/roseate.sif", "docker://example/roseate", "oras://a/b"])
def test_apptainer(bench, image):
    bench.install("apptainer", APPTAINER)
    done = bench.run("pretrain.sh", "demo", ROSEATE_CONTAINER=image, **MORE)
    assert done.returncode == 0, done.stderr
    check, train = bench.notes("apptainer")[0], "\n".join(bench.notes("apptainer")[1:])
    binds = " ".join(f"--bind={mount}" for mount in mounts(bench))
    start = f"exec --pwd={bench.folder} {binds} {image} "
    python = bench.folder / "python"
    assert check == f"{start}{python} -m pipeline config check demo --world-size 2"
    assert train.startswith(f"{start}bash -c")
    assert train.endswith(f"task {python} -m pipeline train demo")
    assert len(bench.calls("-m", "pipeline", "train")) == 1


def test_apptainer_with_gpus(bench):
    bench.install("apptainer", APPTAINER)
    settings = MORE | ONE_TASK | {"DS_ACCELERATOR": "cuda"}
    assert bench.run("evaluate.sh", "demo", ROSEATE_CONTAINER="a.sif", **settings).returncode == 0
    (line,) = bench.notes("apptainer")
    assert line.startswith(f"exec --pwd={bench.folder} --nv --bind=")


@pytest.mark.parametrize("image", ["docker://example/roseate:1", "/images/roseate.sqsh"])
def test_pyxis(bench, image):
    settings = MORE | {"SRUN_HELP": "  --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH"}
    done = bench.run("ingest.sh", "demo", ROSEATE_CONTAINER=image, **settings)
    assert done.returncode == 0, done.stderr
    pairs = [m if ":" in m else f"{m}:{m}" for m in mounts(bench)]
    options = f"--container-image={image} --container-workdir={bench.folder}"
    options += f" --container-mounts={','.join(pairs)} {bench.folder / 'python'} "
    steps = [line for line in bench.notes("srun") if not line.endswith(f"ray-{os.getpid()}")]
    assert len(steps) == 4  # head, worker, the wait for both, the driver
    for step in steps[:2] + steps[-1:]:
        assert options in step


def test_interpreter_of_the_container_is_its_own(bench):
    bench.install("apptainer", APPTAINER)
    bench.install("python3", (bench.folder / "python").read_text())
    settings = MORE | ONE_TASK | {"ROSEATE_CONTAINER": "a.sif", "ROSEATE_PYTHON": ""}
    assert bench.run("evaluate.sh", "demo", **settings).returncode == 0
    assert bench.notes("apptainer")[0].endswith(" a.sif python3 -m pipeline evaluate demo")


def test_no_apptainer_is_said_so(bench):
    done = bench.run("evaluate.sh", "demo", ROSEATE_CONTAINER="a.sif")
    assert done.returncode == 2
    message = "ROSEATE_CONTAINER=a.sif wants apptainer, which is not on PATH: load its module"
    assert message in done.stderr


def test_no_pyxis_is_said_so(bench):
    done = bench.run("evaluate.sh", "demo", ROSEATE_CONTAINER="example/roseate", SRUN_HELP="-h")
    assert done.returncode == 2
    message = "ROSEATE_CONTAINER=example/roseate wants pyxis, but srun knows no --container-image"
    assert message in done.stderr
