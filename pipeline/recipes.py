"""Two whole runs from nothing: drawn scenes with towers of our own, and the OpenClipart drawings.

Every step is a command that a person could type; each can be killed and run again.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from data_prep.examples.openclipart import OpenClipartWeb, build_openclipart_table
from data_prep.examples.tables import build_scene_web
from data_prep.examples.web import SceneWeb
from data_prep.ports import free_port
from pipeline.commands.curate import curate
from pipeline.commands.ingest import ingest
from pipeline.config import RunConfig, load_config
from pipeline.report import write_report


def run_demo(
    overrides: list[str], scenes: int, held_out: int, *, towers_only: bool = False
) -> dict:
    """Web -> ingest -> image tower -> language tower -> Flamingo on 2 processes -> captions.

    Returns:
        The summary, also in {root}/summary.json; {root}/report.html shows it.
    """
    config = load_config("demo", overrides)
    root = Path(config.root)
    began = time.perf_counter()
    web = root / "web"
    port = _port(web)
    if not (web / "held_out.parquet").is_file():
        _say(f"drawing {scenes} scenes and {held_out} held-out ones into {web}")
        build_scene_web(
            web,
            scenes=scenes,
            held_out=held_out,
            seed=config.seed,
            base_url=f"http://127.0.0.1:{port}",
        )
    _say("fetching them through Ray from a web server on loopback, LAION and CC12M tables")
    with SceneWeb(web, port=port):
        summary = {"ingest": ingest(config)}
    for preset in ("demo_vision", "demo_language"):
        _say(f"training the {preset.removeprefix('demo_')} tower")
        summary[preset] = _train(preset, overrides, root, processes=2)
    if not towers_only:
        _say("training the Flamingo: 2 processes, ZeRO-2, experts divided over both, 8-bit AdamW")
        summary["train"] = _train("demo", overrides, root, processes=2)
        _say("captioning held-out scenes")
        summary["evaluate"] = _command(["evaluate", "demo", *overrides], root / "evaluate.json")
    summary["seconds"] = time.perf_counter() - began
    return _finish(config, summary)


def run_openclipart(overrides: list[str], limit: int | None, processes: int) -> dict:
    """nginx -> ingest -> curate -> Flamingo of SmolLM2-135M and EfficientNet-Lite0 -> captions."""
    config = load_config("openclipart", overrides)
    root = Path(config.root)
    began = time.perf_counter()
    web = root / "web"
    port = _port(web)
    table = web / "openclipart.parquet"
    if not table.is_file():
        _say("reading titles, keywords and descriptions from the drawings' SVG files")
        build_openclipart_table(web, f"http://127.0.0.1:{port}", limit=limit)
    _say("fetching the drawings through Ray from nginx on loopback")
    with OpenClipartWeb(web, port=port):
        summary = {"ingest": ingest(config)}
    _say("leaving out drawings that look like another, and texts that many of them share")
    summary["curate"] = curate(config)
    _say(f"training the Flamingo: {processes} processes, both towers frozen")
    summary["train"] = _train("openclipart", overrides, root, processes=processes)
    _say("captioning held-out drawings")
    summary["evaluate"] = _command(["evaluate", "openclipart", *overrides], root / "evaluate.json")
    summary["seconds"] = time.perf_counter() - began
    return _finish(config, summary)


def _train(preset: str, overrides: list[str], root: Path, *, processes: int) -> dict:
    """Train, unless the same configuration has been trained here; its summary."""
    config = load_config(preset, overrides)
    result, written = root / f"{preset}.json", config.run_folder / "config.yaml"
    if result.is_file() and written.is_file():
        summary = json.loads(result.read_text())
        same = yaml.safe_load(written.read_text()) == config.model_dump(mode="json", by_alias=True)
        if same and summary["finished"]:
            _say(f"{config.name}: trained already, in MLflow run {summary['mlflow_run_id']}")
            return summary
    return _command(["train", preset, *overrides, "--processes", str(processes)], result)


def _command(arguments: list[str], result: Path) -> dict:
    """Run a `roseate` command in a process of its own; its summary."""
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pipeline", *arguments, "--json", str(result)]
    code = subprocess.call(command, stdout=subprocess.DEVNULL, env=os.environ)
    if code:
        raise SystemExit(code)
    return json.loads(result.read_text())


def _finish(config: RunConfig, summary: dict) -> dict:
    (Path(config.root) / "summary.json").write_text(json.dumps(summary, indent=1))
    write_report(config, summary)
    return summary


def _port(folder: Path) -> int:
    """A free port, chosen once per web folder: the URL tables name it."""
    file = folder / "port"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(str(free_port()))
    return int(file.read_text())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
