"""The batch scripts without SLURM: srun, scontrol and the interpreter are stand-ins that take notes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SLURM = REPOSITORY / "slurm"

# Drops its own options and runs the rest, as the one task.
SRUN = """#!/usr/bin/env bash
[[ $1 != --help ]] || { echo "$SRUN_HELP"; exit 0; }
echo "$*" >>"$NOTES/srun.notes"
while [[ $1 == --* ]]; do shift; done
if [[ $1 == true && -e $NOTES/silent ]]; then
  rm "$NOTES/silent"  # a node that does not answer once
  exit 1
fi
export SLURM_PROCID=0 SLURM_LOCALID=0
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$*" >>"$NOTES/scontrol.notes"
case "$1 $2" in
  "show hostnames") echo n1; [[ $SLURM_NNODES == 1 ]] || echo n2 ;;
  "show node") echo "NodeName=$3 NodeAddr=127.0.0.1 State=${NODE_STATE:-MIXED} CPUs=1" ;;
  "show job") echo "JobId=$3 JobState=$STATE Reason=None" ;;
esac
"""
# Drops the options and the image; what a container would change is not there to be seen.
APPTAINER = """#!/usr/bin/env bash
echo "$*" >>"$NOTES/apptainer.notes"
shift
while [[ $1 == --* ]]; do shift; done
shift
exec "$@"
"""
# CODES: exit code by command, for the training a list with one for each attempt. PROGRESS: such a
# list of steps of the newest checkpoint.
PYTHON = f"""#!{sys.executable}
import json, os, signal, socket, sys, time
arguments = sys.argv[1:]
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RAY_AUTH_MODE")
seen = {{name: os.environ.get(name) for name in names}}
with open(os.environ["NOTES"] + "/python.notes", "a") as notes:
    notes.write(json.dumps([arguments, seen]) + "\\n")
if arguments[:2] == ["-m", "ray.scripts.scripts"]:
    listener = socket.socket()
    for argument in arguments:
        if argument.startswith("--port="):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", int(argument.partition("=")[2])))
            listener.listen()
    signal.pause()
if arguments[:1] == ["-"]:  # the script that waits for the Ray nodes
    while open(os.environ["NOTES"] + "/python.notes").read().count("ray.scripts") < int(arguments[2]):
        time.sleep(0.05)
if arguments[:3] == ["-m", "pipeline", "train"] and os.environ.get("STOPS_EARLY"):
    open(os.environ["ROSEATE_REQUEUE_MARKER"], "w").close()
code = json.loads(os.environ.get("CODES", "{{}}")).get(arguments[2] if len(arguments) > 2 else "", 0)
if arguments[:3] == ["-m", "pipeline", "train"]:
    attempt = open(os.environ["NOTES"] + "/python.notes").read().count('"train"') - 1
    code = code[attempt] if isinstance(code, list) else code
    for step in json.loads(os.environ.get("PROGRESS", "[]"))[attempt : attempt + 1]:
        open(os.environ["ROSEATE_PROGRESS_FILE"], "w").write(f"{{step}}\\n")
if arguments[2:4] == ["config", "show"]:
    print(os.environ.get("SHOWN", ""))
sys.exit(code)
"""


class Bench:
    """A folder with the stand-ins; `run` runs a batch script there."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
            self.install(name, text)

    def run(self, script: str, *arguments: str, **environment: str):
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "ROSEATE", "RAY_"))
        }
        clean |= {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "NOTES": str(self.folder),
            "STATE": "RUNNING",
            "ROSEATE_PYTHON": str(self.folder / "python"),
            "ROSEATE_JOBS": str(self.folder / "jobs"),
            "SLURM_SUBMIT_DIR": str(REPOSITORY),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NAME": "bench",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NNODES": "2",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS": "2",
            "SLURM_CPUS_PER_TASK": "1",
        }
        # SLURM runs a copy from its spool folder.
        copy = shutil.copy(SLURM / script, self.folder / "slurm_script")
        return subprocess.run(
            ["bash", copy, *arguments],
            env=clean | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, *start: str) -> list[tuple[list[str], dict]]:
        """Arguments after `start` and environment, of every call of the interpreter."""
        lines = self.folder / "python.notes"
        notes = [json.loads(line) for line in lines.read_text().splitlines()]
        return [(a[len(start) :], e) for a, e in notes if a[: len(start)] == list(start)]

    def install(self, name: str, text: str) -> None:
        """One more stand-in on PATH."""
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def notes(self, name: str) -> list[str]:
        """Arguments of every call of a stand-in, one line for each."""
        path = self.folder / f"{name}.notes"
        return path.read_text().splitlines() if path.exists() else []

    def requeued(self) -> bool:
        return any(line.startswith("requeue ") for line in self.notes("scontrol"))
