"""Planned bytes against those that real engines hold on 1, 2 and 4 processes, within 5%."""

import gc
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from model.build import build_flamingo
from model.media import Media, MediaInput
from model.plan import compute_plan
from pipeline.batch_plan import BatchPlan
from pipeline.config import RunConfig, load_config
from pipeline.data.tokenizer import train_tokenizer
from pipeline.engine import deepspeed_config
from pipeline.engine.start import DTYPES, start_engine
from pipeline.formats import flamingo_text
from pipeline.plan.activations import Activations
from pipeline.plan.memory import Trained, compute_passing, compute_standing
from pipeline.plan.model import build_planned
from pipeline.plan.parameters import list_parameters
from pipeline.plan.strategy import KEYS, Strategy, read_strategy
from tests.helpers.held_bytes import HeldBytes, living_storages, living_tensors
from tests.helpers.living_bytes import LivingBytes
from tests.helpers.processes import run_processes

pytestmark = pytest.mark.distributed

MICRO, TOKENS = 2, 128
TOLERANCE = 0.05


class Case(NamedTuple):
    """How a run is trained."""

    stage: int
    experts: int = 1
    expert_parallel: int = 1
    optimizer: str = "adamw"
    precision: str = "fp32"
    accumulation: int = 1


CASES = {
    1: [Case(2, optimizer="adamw_8bit"), Case(3, precision="bf16")],
    2: [
        Case(0),
        Case(1),
        Case(1, optimizer="adamw_8bit", precision="bf16", accumulation=2),
        Case(2, optimizer="adamw_8bit"),
        Case(2, accumulation=2),
        Case(2, 4, 2, "adamw_8bit", "bf16"),
        Case(3),
        Case(3, 4, 2, "adamw_8bit", "bf16"),
    ],
    4: [
        Case(1, 4, 2),
        Case(2, 4, 2, "adamw_8bit"),
        Case(2, 4, 1, "adamw_8bit", "bf16"),
        Case(3, 4, 2, "adamw_8bit", "bf16"),
    ],
}


@pytest.fixture(scope="module")
def wide_root(tmp_path_factory) -> Path:
    """Towers wide enough that parameters outweigh padding, and strategies with small buckets."""
    from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

    root = tmp_path_factory.mktemp("wide")
    tokenizer = train_tokenizer(["two small red circles left of a large blue square"] * 50, 300)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = ViTConfig(image_size=32, patch_size=16, intermediate_size=256, **sizes)
    ViTModel(vision, add_pooling_layer=False).save_pretrained(root / "vision")
    sizes |= {"hidden_size": 256, "num_key_value_heads": 4, "intermediate_size": 512}
    language = LlamaConfig(vocab_size=len(tokenizer), **sizes)
    LlamaForCausalLM(language).save_pretrained(root / "language")
    tokenizer.save_pretrained(root / "language")
    (root / "strategies").mkdir()
    for stage in range(4):
        zero = {"stage": stage, "reduce_bucket_size": 100_000}
        zero |= {"stage3_param_persistence_threshold": 1000} if stage == 3 else {}
        (root / "strategies" / f"zero{stage}.json").write_text(
            json.dumps({"zero_optimization": zero})
        )
    return root


def configure(root: Path, case: Case, world_size: int) -> RunConfig:
    deepspeed_config.STRATEGIES = root / "strategies"
    return load_config(
        "demo",
        [
            f"root={root}",
            f"model.experts={{num_experts: {case.experts}, top_k: {min(2, case.experts)}, every: 2}}",
            "model.cross_attention={every: 1, num_heads: 4, head_dim: 64, gate_init: 1.0}",
            "model.resampler={depth: 2, num_latents: 8, num_heads: 4, head_dim: 32}",
            f"batch={{global_size: {MICRO * world_size * case.accumulation}, micro_size: {MICRO}}}",
            f"engine={{strategy: zero{case.stage}, expert_parallel: {case.expert_parallel}}}",
            f"optim.name={case.optimizer}",
            f"train.precision={case.precision}",
        ],
    )


def measure(info, root: Path, cases: list[Case]) -> list[dict[str, int]]:
    """What every case holds after two steps.

    ``living`` is all tensors that it brought to life, ``most`` what the second step had beside them.
    """
    return [measure_one(info, root, Case(*case)) for case in cases]


def measure_one(info, root: Path, case: Case) -> dict[str, int]:
    before = living_storages()
    config = configure(root, case, info.world_size)
    text, dtype = flamingo_text(config), DTYPES[case.precision]
    model = build_flamingo(config.model, token_ids=text.token_ids, seed=0, dtype=dtype)
    plan = BatchPlan(config.batch.global_size, MICRO, info.world_size)
    engine = start_engine(config, model, plan, case.precision)
    engine.train()
    held = HeldBytes(engine, case.stage)
    ids = torch.randint(3, 50, (MICRO, TOKENS))
    ids[:, 0] = text.token_ids.media["image"]
    pixels = torch.randn(MICRO, 1, 3, 32, 32, dtype=dtype)
    media = Media(torch.arange(MICRO)[:, None], {"image": MediaInput(pixels)})
    for _ in range(2):
        with LivingBytes(living_tensors()) as step:
            for _ in range(case.accumulation):
                output = engine(media, ids, torch.ones_like(ids, dtype=torch.bool), ids)
                engine.backward(output.loss_sum / TOKENS + 0.01 * output.load_balance_loss)
                del output
                held.note_gradients()
                engine.step()
    parts = held.parts() | {"most": step.most}
    del media, pixels, ids
    parts["living"] = sum(n for key, n in living_storages().items() if key not in before)
    engine.destroy()
    del engine, model, held
    gc.collect()
    return parts


def planned(root: Path, case: Case, world_size: int) -> tuple[dict[str, float], float, float]:
    """What stays, its sum between two steps, and what a step has beside that."""
    config = configure(root, case, world_size)
    model = build_planned(config, DTYPES[case.precision])
    trained = Trained(
        list_parameters(model, config, world_size),
        *(world_size, case.precision, case.optimizer, case.accumulation),
    )
    strategy = read_strategy(f"zero{case.stage}")
    standing, passing = compute_standing(trained, strategy), compute_passing(trained, strategy)
    between = sum(standing.values())
    plan = compute_plan(model, num_tokens=TOKENS, num_images=1)
    activations = Activations(plan, model.fused_layers[0], 1, False, trained.weight_bytes)
    backward = passing["buckets"] + passing["gathered"]
    backward += MICRO * activations.kept + activations.working(MICRO)
    most = max(backward, passing["update"])
    if case.stage == 3:
        # The bucket and the tensor of gradients are there for good.
        bucket = trained.weight_bytes * strategy.reduce_bucket
        return standing, between + bucket, most - bucket
    gradients = standing["gradients"]
    return standing, between - gradients, most + gradients


@pytest.mark.parametrize("world_size", sorted(CASES))
def test_what_engines_hold_is_what_was_planned(wide_root, world_size, monkeypatch):
    monkeypatch.setattr(deepspeed_config, "STRATEGIES", deepspeed_config.STRATEGIES)
    cases = CASES[world_size]
    by_rank = run_processes(measure, world_size, wide_root, [tuple(case) for case in cases])
    wrong = []
    for number, case in enumerate(cases):
        plan, between, most = planned(wide_root, case, world_size)
        ranks = [found[number] for found in by_rank]
        fullest = {name: max(rank[name] for rank in ranks) for name in ranks[0]}
        for name, expected in (plan | {"living": between}).items():
            if fullest[name] != pytest.approx(expected, rel=TOLERANCE, abs=4096):
                wrong.append(f"{case}: {name} {fullest[name]:,}, planned {expected:,.0f}")
        # All activations and all gradients are planned as if they were there at once.
        if not 0.6 * most < fullest["most"] < 1.05 * most:
            wrong.append(f"{case}: most of a step {fullest['most']:,}, planned {most:,.0f}")
    assert not wrong, "\n".join(wrong)


def test_what_a_strategy_file_leaves_out_is_as_in_deepspeed():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs = DeepSpeedZeroConfig()
    fields = {field.alias or name: name for name, field in type(theirs).model_fields.items()}
    for key, ours in KEYS.items():
        assert getattr(theirs, fields[key]) == getattr(Strategy("-"), ours), key
