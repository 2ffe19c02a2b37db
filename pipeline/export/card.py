"""The model card: README.md of an exported model, written from what the checkpoint knows."""

import json

from model.vision import EFFICIENTNET_LITE0
from pipeline.evaluation.figure_names import key_label
from pipeline.tracking.environment import code_commit, versions
from pipeline.tracking.secrets import redact, redact_all
from pipeline.trained import Trained

# Sections that say what was computed; the others say where and with what machinery.
_SECTIONS = ("name", "seed", "objective", "data", "model", "loss", "batch", "optim", "train")
_FRONT = """---
library_name: transformers
pipeline_tag: image-text-to-text
license: other
tags: [flamingo, image-text-to-text, custom_code]
---"""
_EXAMPLE = """```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{place}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{place}", trust_remote_code=True)
inputs = processor(images=[Image.open("photo.jpg")], text="")
ids = model.generate(**inputs)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])[0])
```

It needs {needs}, and nothing of the project that trained it.
`trust_remote_code=True` runs the Python files beside this card.

Examples in front of the question, here with two images:
`processor(images=[first, second], text="<image>a cat<|endofchunk|><image>")`.

In 8 or 4 bits, with bitsandbytes and accelerate, `quantization_config=` is
`BitsAndBytesConfig(load_in_8bit=True)` or
`BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")`."""
_LIMITS = """It says what it was trained to say, on texts from the web, in their language and with their
mistakes and prejudices. It was not trained to follow instructions, knows no conversation, has no filter, and
invents what it does not see. Look at the figures, and at its captions of your own images, before you rely on
it.

The licence of these weights follows from those of the towers and of the data. It is for whoever passes them on
to find out, and to state here and in the head of this file (`license`)."""


def write_card(trained: Trained, place: str, summary: dict) -> str:
    """Markdown.

    Args:
        trained: the model.
        place: what the example loads.
        summary: of the export.
    """
    config, state = trained.config, trained.checkpoint.state
    needs = "torch and transformers"
    if config.model.vision.path == EFFICIENTNET_LITE0:
        needs += ", besides `pip install --no-deps efficientnet_lite_pytorch` for the image tower"
    if summary["towers"] != "included":
        needs += ", besides the towers where config.json says they are (or `tower_paths={...}`)"
    chosen = {
        k: v for k, v in config.model_dump(mode="json", by_alias=True).items() if k in _SECTIONS
    }
    parts = [
        _FRONT,
        f"# {config.name}, step {trained.step:,}",
        "A Flamingo (arXiv:2204.14198): a frozen image tower and a frozen language model, joined by a "
        "perceiver resampler and gated cross-attention. It continues texts with images in them. Exported "
        "by Roseate.",
        "## Use",
        _EXAMPLE.format(place=place, needs=needs),
        "## What it is made of",
        _table(_parts(trained, summary)),
        "## Training",
        _table(
            {
                "steps": f"{trained.step:,}",
                "samples seen": f"{state['data']['position']:,}",
                "held-out loss": f"{state['held_out_loss']:.4f} nats per token"
                if state.get("held_out_loss") is not None
                else "not measured",
                "began with": f"`{redact(state['start_from'])}`"
                if state.get("start_from")
                else "its towers, the rest at random",
                "seed": config.seed,
                "MLflow run": state["run_id"] or "none",
                "commit of the code that exported it": code_commit()[0] or "unknown",
            }
        ),
        _sources(trained),
        _merge(summary["merge"]),
        _figures(trained, summary),
        "## Limits",
        _LIMITS,
        "## How it was made",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()) + ".",
        "<details><summary>the configuration</summary>\n\n```json\n"
        + json.dumps(redact_all(chosen), indent=1)
        + "\n```\n</details>",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _parts(trained: Trained, summary: dict) -> dict[str, object]:
    model, state = trained.config.model, trained.checkpoint.state
    language = trained.objective.model.language
    vision = trained.objective.model.vision.backbone
    return {
        "image tower": f"{type(vision).__name__} of `{redact(model.vision.path)}`, "
        + _identity(state, "vision"),
        "language model": f"{type(language).__name__} of `{redact(model.language.path)}`, "
        + _identity(state, "language"),
        "towers": summary["towers"] if summary["towers"] == "included" else "by reference",
        "experts": summary["experts"],
        "parameters": f"{summary['parameters']:,}",
        "weights": f"{summary['dtype']}, {summary['bytes'] / 1e6:,.1f} MB",
    }


def _sources(trained: Trained) -> str:
    fingerprints = trained.checkpoint.state["data"]["fingerprints"]
    rows = [
        f"| {name} | `{redact(source.path)}` | {source.weight:g} | `{fingerprints.get(name, 'unknown')}` |"
        for name, source in trained.config.data.sources.items()
    ]
    return "| data | where | weight | fingerprint |\n|---|---|---|---|\n" + "\n".join(rows)


def _merge(merge: dict | None) -> str:
    if merge is None:
        return ""
    return (
        "Its experts were merged into one feed-forward for each block, which is an approximation: the loss of "
        f"{merge['samples']} held-out samples went from {merge['loss_before']:.4f} to "
        f"{merge['loss_after']:.4f} nats per token."
    )


def _identity(state: dict, part: str) -> str:
    return f"sha256 `{state['frozen'].get(f'model.{part}.path', 'unknown')[:16]}`"


def _table(rows: dict[str, object]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {k} | {v} |" for k, v in rows.items())


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if abs(value) >= 1e-6 else "0"


def _figures(trained: Trained, summary: dict) -> str:
    """The figures of evaluations that lie in the run's folder, of this very step."""
    folder = trained.config.run_folder / "evaluation" / f"step_{trained.step:06d}"
    rows = []
    for path in sorted(folder.glob("*/results.json")):
        results = json.loads(path.read_text())
        for figure in results["figures"]:
            if figure["value"] is None or figure["condition"].startswith("minus_"):
                continue
            key = "_".join(filter(None, (figure["name"], figure["condition"])))
            value, low, high = (_short(figure[k]) for k in ("value", "low", "high"))
            value += f" ({low} to {high})" if low else ""
            rows.append(
                f"| {results['suite']} | {key_label(key)} | {value} | {figure['samples']} |"
            )
    if not rows:
        return ""
    of = "Of the checkpoint"
    if summary["merge"]:
        of += ", before its experts were merged"
    head = f"## Figures\n\n{of}.\n\n| suite | figure | value (95 % interval) | samples |\n"
    return head + "|---|---|---|---|\n" + "\n".join(rows)
