"""Every strategy merges with every preset; a strategy file says only how to shard."""

import json

import pytest

from data_prep.errors import ConfigError
from pipeline.batch_plan import BatchPlan
from pipeline.config import load_config, preset_names
from pipeline.engine import deepspeed_config
from pipeline.engine.deepspeed_config import (
    STRATEGIES,
    build_deepspeed_config,
    is_expert_parallel,
    load_strategy,
)


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("strategy", [p.stem for p in STRATEGIES.glob("*.json")])
def test_every_strategy_merges_with_every_preset(preset, strategy):
    config = load_config(preset, [f"engine.strategy={strategy}"])
    plan = BatchPlan(config.batch.global_size, config.batch.micro_size, 2)
    merged = build_deepspeed_config(config, plan, "fp32")
    assert merged["train_batch_size"] == plan.micro_size * plan.accumulation_steps * 2
    assert merged["gradient_clipping"] == config.optim.clip_norm
    assert '"auto"' not in json.dumps(merged)
    assert ("expert_parallel" in merged) == is_expert_parallel(config)


def test_strategy_file_may_not_hold_what_the_run_owns(tmp_path, monkeypatch):
    (tmp_path / "bad.json").write_text('{"train_batch_size": 4, "gradient_clipp1ng": 1}')
    monkeypatch.setattr(deepspeed_config, "STRATEGIES", tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_strategy("bad")
    assert [p.value for p in caught.value.problems] == ["gradient_clipp1ng", "train_batch_size"]
