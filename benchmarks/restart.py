"""How long a training job stands still when a rank is killed: from SIGKILL to the next finished step.

    python -m benchmarks.restart [--quick] [--kills N] [--json PATH] [--markdown PATH]

A SLURM of two nodes on this host, one rank on each, with the wait between TERM and KILL that SLURM has
by default (30 s); slurm/pretrain.sh with the demo's preset and random towers of its kind. A random rank
is killed after a new checkpoint; the next step is taken from the times in the MLflow store. Needs root
and the system packages of .ci/system-packages.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Figure, Pairs, parser, write
from tests.helpers.cluster import Cluster, running_cluster, why_not
from tests.helpers.dataset import write_scenes
from tests.helpers.stored_runs import losses, run_ids
from tests.helpers.tiny import write_towers

LIMIT_SECONDS = 60.0
# No step of the attempt that was killed ends so late, and no new one begins so early.
BETWEEN_SECONDS = 1.0
OVERRIDES = (
    "name=restarts",
    "train={steps: 100000, log_every_steps: 1, validate_every_steps: 100000, precision: fp32}",
    "checkpoint.every_steps=10",
)


def measure(cluster: Cluster, root: Path, kills: int) -> list[float]:
    """Kill a rank so many times; the seconds that each cost."""
    job = cluster.submit("pretrain.sh", "demo", f"root={root}", *OVERRIDES)
    draw, reached, taken = random.Random(0), 0, []
    for _ in range(kills):
        cluster.wait_until(lambda reached=reached: cluster.progress(job) > reached, job=job)
        reached = cluster.progress(job)
        killed = cluster.kill_rank(job, draw.randrange(2))
        taken.append(next_step(cluster, root, job, killed) - killed)
        print(f"kill at step {reached} or later: {taken[-1]:.1f} s", file=sys.stderr, flush=True)
    cluster.run("scancel", job)
    cluster.wait(job)
    return taken


def next_step(cluster: Cluster, root: Path, job: str, killed: float) -> float:
    """When the first step after the restart was finished."""
    run_id = run_ids(cluster.log(job))[0]
    deadline = killed + 5 * LIMIT_SECONDS
    while time.time() < deadline:
        times = [when for _, _, when in losses(root, run_id) if when > killed + BETWEEN_SECONDS]
        if times:
            return min(times)
        time.sleep(0.5)
    sys.exit(f"no step in {5 * LIMIT_SECONDS:.0f} s after the kill:\n{cluster.log(job)}")


def restarts(kills: int) -> Figure:
    """The figure, against the limit."""
    with tempfile.TemporaryDirectory(prefix="restart-") as folder:
        root = Path(folder)
        write_towers(root)
        for name in ("laion", "cc12m"):
            write_scenes(root / "data" / name, 200)
        write_scenes(root / "data" / "held_out", 40, held_out=True)
        with running_cluster(root / "logs", MINI_SLURM_KILL_WAIT="30") as cluster:
            taken = measure(cluster, root, kills)
    pairs = Pairs(taken, [LIMIT_SECONDS] * kills)
    return pairs.figure("SIGKILL of a rank to the next finished step / limit", "s", 1.0)


def main() -> None:
    """Measure and write."""
    command = parser("time from SIGKILL of one rank to the next finished step, on a two-node SLURM")
    command.add_argument("--kills", type=int, default=5, help="default: 5; 1 with --quick")
    args = command.parse_args()
    if reason := why_not():
        command.error(reason)
    write([restarts(1 if args.quick else args.kills)], args)


if __name__ == "__main__":
    main()
