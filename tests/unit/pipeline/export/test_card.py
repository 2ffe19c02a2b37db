"""The model card says where a model comes from, what it can, and what it cannot."""

import json

import pytest
import yaml

from pipeline.export.export import export_model
from pipeline.trained import open_trained
from tests.unit.pipeline.export.cases import opened


@pytest.fixture
def trained(trained_root):
    return opened(trained_root)


def card_of(trained, folder, **options):
    export_model(trained, folder, **options)
    return (folder / "README.md").read_text()


def test_the_card_tells_what_it_is_and_how_to_use_it(trained, tmp_path):
    card = card_of(trained, tmp_path / "out")
    state = trained.checkpoint.state
    for told in (
        *("step 6", trained.run_id, "AutoModelForImageTextToText", "torch and transformers"),
        *("## Limits", "licence", "transformers 5", f"{state['held_out_loss']:.4f} nats per token"),
        *("| samples seen | 48 |", "ViTModel", "LlamaForCausalLM"),
    ):
        assert told in card, told
    for name, fingerprint in state["data"]["fingerprints"].items():
        path = trained.config.data.sources[name].path
        assert f"| {name} | `{path}` | 1 | `{fingerprint}` |" in card
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "image-text-to-text" and front["license"] == "other"


def test_the_configuration_in_it_is_that_of_the_run_and_no_secret(trained, tmp_path):
    sources = {
        name: source.model_copy(update={"path": f"https://me:secret@host/{name}"})
        for name, source in trained.config.data.sources.items()
    }
    data = trained.config.data.model_copy(update={"sources": sources})
    trained.config = trained.config.model_copy(update={"data": data})
    card = card_of(trained, tmp_path / "out")
    config = json.loads(card.split("```json")[1].split("```")[0])
    assert config["optim"] == trained.config.optim.model_dump(mode="json")
    assert config["model"]["experts"]["num_experts"] == 4
    assert "tracking" not in config and "secret" not in card


def test_figures_of_an_evaluation_of_this_step_are_in_it(trained_root, tmp_path):
    trained = opened(trained_root)
    assert "## Figures" not in card_of(trained, tmp_path / "none")
    # The run's folder is shared: the figures lie in another one.
    trained.config = trained.config.model_copy(update={"root": type(trained.config.root)(tmp_path)})
    figure = {"samples": 9, "condition": "", "low": 11.0, "high": 13.5}
    figures = [
        figure | {"name": "cider", "value": 12.25},
        figure | {"name": "cider", "value": 1.0, "condition": "minus_zero_image"},
        figure | {"name": "bleu_4", "value": 2.9e-18, "low": None, "high": None},
        figure | {"name": "nothing", "value": None},
    ]
    for step in (3, 6):
        place = trained.config.run_folder / "evaluation" / f"step_{step:06d}" / "captioning"
        place.mkdir(parents=True)
        results = {"suite": f"suite{step}", "figures": figures}
        (place / "results.json").write_text(json.dumps(results))
    card = card_of(trained, tmp_path / "out")
    rows = [line for line in card.splitlines() if line.startswith("| suite")]
    assert len(rows) == 3 and rows[0].startswith("| suite | figure")
    assert "12.25 (11 to 13.5) | 9 |" in rows[1] and "| 0 | 9 |" in rows[2]


def test_what_a_merge_costs_is_in_it(trained_root, tmp_path):
    trained = open_trained(str(trained_root / "flamingo"))
    summary = export_model(trained, tmp_path / "out", experts="merge")
    card = (tmp_path / "out" / "README.md").read_text()
    told = f"{summary['merge']['loss_before']:.4f} to {summary['merge']['loss_after']:.4f} nats per token"
    assert told in card and f"of {summary['merge']['samples']} held-out samples" in card


def test_towers_by_reference_are_said_to_be_needed(trained, tmp_path):
    assert "besides the towers where config.json says" in card_of(
        trained, tmp_path / "out", towers="reference"
    )
