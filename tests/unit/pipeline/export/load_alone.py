"""Loads exported models with nothing of the project on the path, and writes what they compute.

Run as `python -I load_alone.py JOBS RESULTS`, with files of torch. DeepSpeed is not to be found.
"""

import contextlib
import io
import os
import sys

sys.modules["deepspeed"] = None

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    pipeline,
)

QUANTIZED = {
    8: BitsAndBytesConfig(load_in_8bit=True),
    4: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
}


def run(job: dict) -> dict:
    folder, options = job["folder"], dict(job.get("options", {}))
    if bits := job.get("bits"):
        options["quantization_config"] = QUANTIZED[bits]
    trust = {"trust_remote_code": True}
    kind = AutoModelForCausalLM if job.get("causal") else AutoModelForImageTextToText
    try:
        model, report = kind.from_pretrained(folder, output_loading_info=True, **trust, **options)
    except (ValueError, ImportError) as error:
        return {"error": str(error)}
    processor = AutoProcessor.from_pretrained(folder, **trust)
    images = [[Image.open(io.BytesIO(data)) for data in row] for row in job["images"]]
    inputs = processor(images=images, text=job["texts"])
    with torch.no_grad():
        logits = model(**inputs).logits
    ids = model.generate(**inputs, max_new_tokens=6)
    new = ids.shape[1] - logits.shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, new), value=1)
    with torch.no_grad():
        whole = model(**dict(inputs) | {"input_ids": ids, "attention_mask": mask}).logits
    result = {
        "kind": AutoConfig.from_pretrained(folder, **trust).model_type,
        "wrong": sorted(report["missing_keys"] | report["unexpected_keys"]),
        "inputs": dict(inputs),
        "logits": logits,
        "ids": ids,
        "without_cache": whole[:, -new - 1 : -1].argmax(-1),
        "texts": processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :]),
        "bytes": model.get_memory_footprint(),
        "dtypes": {name: p.dtype for name, p in model.named_parameters()},
    }
    if again := job.get("again"):
        model.save_pretrained(again)
        processor.save_pretrained(again)
    if job.get("pipeline"):
        pipe = pipeline("image-text-to-text", model=folder, **trust)
        said = pipe(
            images=images[1], text=job["texts"][1], max_new_tokens=6, return_full_text=False
        )
        result["said"] = said[0]["generated_text"]
    return result


def run_code(code: str, folder: str) -> str:
    """What a piece of Python prints when it is run in a folder."""
    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    return printed.getvalue()


def main(jobs_path: str, results_path: str) -> None:
    jobs = torch.load(jobs_path)
    torch.set_num_threads(jobs["threads"])
    results = {name: run(job) for name, job in jobs["jobs"].items()}
    results["card"] = run_code(**jobs["card"])
    results["ours"] = sorted(
        m for m in sys.modules if m.split(".")[0] in ("pipeline", "model", "data_prep")
    )
    torch.save(results, results_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
