import json
import xml.etree.ElementTree as ET

import pytest

from pipeline.config import load_config
from pipeline.plan.draw import draw_run
from pipeline.plan.options import PlanOptions
from pipeline.plan.run import plan_run
from pipeline.plan.table import WIDTH, format_run, summarise
from tests.helpers.command import exit_code


def plan(preset="flamingo_3b", *overrides, **options):
    return plan_run(load_config(preset, overrides), PlanOptions(**{"nodes": 8} | options))


def run_cli(monkeypatch, *arguments):
    return exit_code(monkeypatch, "plan", *arguments)


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("flamingo_3b", {}),
        ("flamingo_9b_moe", {}),
        ("flamingo_80b", {"nodes": 16}),
        ("demo", {"nodes": 1, "gpus_per_node": 2}),
    ],
)
def test_presets_can_be_planned_without_weights(tmp_path, preset, options):
    run = plan(preset, f"root={tmp_path}", **options)
    text = format_run(run)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert all(plan.strategy.name in text for plan in run.strategies)
    assert [p.strategy.stage for p in run.strategies] == sorted(
        p.strategy.stage for p in run.strategies
    )
    chosen = summarise(run)["strategies"][run.config.engine.strategy]
    assert chosen["fits"]
    assert chosen["bytes"]["total"] == run.chosen.total
    assert ("Not there yet" in text) == (preset == "demo")
    json.dumps(summarise(run))
    drawing = ET.fromstring(draw_run(run, preset))
    names = [box.get("data-name") for box in drawing.iter() if box.get("data-name")]
    assert f"{run.config.engine.strategy}: frozen weights" in names


def test_the_stages_order_what_is_held():
    run = plan("flamingo_80b", nodes=16)
    by_name = {plan.strategy.name: plan for plan in run.strategies}
    plans = [by_name[f"zero{stage}"] for stage in range(4)]
    totals = [plan.total for plan in plans]
    assert totals == sorted(totals, reverse=True)
    assert [plan.fits for plan in plans] == [False, False, False, True]
    assert [plan.largest_micro > 0 for plan in plans] == [False, False, False, True]
    assert run.best is run.chosen


def test_figures_follow_from_the_stated_utilisation_and_price():
    one = summarise(plan(mfu=0.2, price_per_hour=1.0))
    two = summarise(plan(mfu=0.4, price_per_hour=3.0))
    first, second = (figures["strategies"]["zero1"] for figures in (one, two))
    assert first["compute_seconds"] == pytest.approx(2 * second["compute_seconds"])
    assert first["days"] == pytest.approx(first["step_seconds"] * 250_000 / 86400)
    assert first["gpu_hours"] == pytest.approx(first["days"] * 24 * 64)
    assert first["dollars"] == pytest.approx(first["gpu_hours"])
    assert second["dollars"] == pytest.approx(3 * second["gpu_hours"])
    flops = one["flops_per_sample"]["model"] * 2048 / 64
    assert first["compute_seconds"] == pytest.approx(flops / (0.2 * 989e12))
    assert first["tokens_per_second"] == pytest.approx(64 * 2048 / first["step_seconds"])


def test_packed_rows_hold_several_samples_and_their_images():
    packed, single = plan(), plan("flamingo_3b", "data.pack_tokens=null")
    assert (packed.samples_per_row, packed.model.num_tokens, packed.model.num_images) == (4, 256, 4)
    assert (single.samples_per_row, single.model.num_tokens, single.model.num_images) == (1, 64, 1)
    shorter = plan(tokens=32)
    assert (shorter.samples_per_row, shorter.model.num_images) == (8, 8)
    # A token attends to all of its row in the count of FLOPs, to a little more in longer rows.
    samples = [run.flops.model / run.samples_per_row for run in (single, packed)]
    assert 1 < samples[1] / samples[0] < 1.05


def test_checkpointing_takes_memory_and_costs_utilisation():
    kept, again = plan(), plan("flamingo_3b", "train.activation_checkpointing=true")
    assert again.chosen.parts["activations"] < 0.5 * kept.chosen.parts["activations"]
    assert again.mfu < kept.mfu == 0.35


def test_what_is_unfrozen_later_is_planned_as_trained():
    layer = r"language\.model\.decoder\.layers\.23\..*"
    entry = f"train.unfreeze=[{{step: 10, parameters: '{layer}'}}]"
    more, fewer = plan("flamingo_3b", entry), plan()
    assert more.trained.parameters.trained_numel > fewer.trained.parameters.trained_numel + 50e6


def test_every_mistake_is_told_at_once(monkeypatch, capsys):
    arguments = ("--gpu", "h100", "--nodes", "0", "--mfu", "3", "--price-per-hour", "-1")
    assert run_cli(monkeypatch, "flamingo_3b", *arguments, "engine.strategy=zero9") == 2
    message = capsys.readouterr().err
    assert "did you mean h100-80gb?" in message
    for key in ("--gpu", "--nodes = 0", "--mfu = 3.0", "--price-per-hour", "engine.strategy"):
        assert key in message


def test_what_the_run_would_be_refused_for_is_said(monkeypatch, capsys):
    assert run_cli(monkeypatch, "flamingo_3b", "--nodes", "3") == 2
    assert "a multiple of batch.micro_size=32 x world_size=24" in capsys.readouterr().err
    assert run_cli(monkeypatch, "flamingo_3b", "--gpu", "v100-32gb") == 2
    assert "which v100-32gb does not do" in capsys.readouterr().err
    assert run_cli(monkeypatch, "demo_vision", "--gpus-per-node", "2") == 2
    assert "plan the Flamingo instead" in capsys.readouterr().err
    few = ("--images", "99", "--tokens", "300")
    assert run_cli(monkeypatch, "flamingo_3b", *few) == 2
    assert "fits a row of data.pack_tokens=256" in capsys.readouterr().err


def test_the_command_writes_summary_and_drawing(monkeypatch, tmp_path, capsys):
    svg, summary = tmp_path / "out" / "plan.svg", tmp_path / "plan.json"
    arguments = ("demo", f"root={tmp_path}", "--gpus-per-node", "2")
    assert not run_cli(monkeypatch, *arguments, "--svg", svg, "--json", summary)
    assert "assumed" in capsys.readouterr().out
    assert json.loads(summary.read_text())["gpus"] == 2
    assert ET.parse(svg).getroot().tag.endswith("svg")
